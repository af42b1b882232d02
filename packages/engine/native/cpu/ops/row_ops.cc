#include "row_ops.h"

#include <cstring>

namespace moe {

void run(const Embed& op, const OpContext& context) {
  for_rows(context, context.step.num_tokens, op.width, [&](int64_t begin, int64_t end, uint32_t) {
    for (int64_t t = begin; t < end; t++) {
      context.kernels.bf16_to_f32(op.table + context.step.token_ids[t] * op.width, op.output + t * op.width, op.width);
    }
  });
}

void run(const RmsNorm& op, const OpContext& context) {
  for_rows(context, context.rows(op.rows), op.width, [&](int64_t begin, int64_t end, uint32_t) {
    for (int64_t r = begin; r < end; r++) {
      context.kernels.rms_norm(op.input + r * op.width, op.weight.data, op.output + r * op.width, op.width, op.eps);
    }
  });
}

void run(const HeadRmsNorm& op, const OpContext& context) {
  for_rows(context, context.step.num_tokens, op.num_heads * op.head_dim, [&](int64_t begin, int64_t end, uint32_t) {
    for (int64_t t = begin; t < end; t++) {
      for (int64_t h = 0; h < op.num_heads; h++) {
        float* head = op.tensor + (t * op.row_width + op.column_offset + h * op.head_dim);
        context.kernels.rms_norm(head, op.weight.data, head, op.head_dim, op.eps);
      }
    }
  });
}

void run(const Rope& op, const OpContext& context) {
  for_rows(context, context.step.num_tokens, op.num_heads * op.rotary_dim, [&](int64_t begin, int64_t end, uint32_t) {
    for (int64_t t = begin; t < end; t++) {
      const float* table = op.table + context.step.positions[t] * op.rotary_dim;
      float* heads = op.tensor + (t * op.row_width + op.column_offset);
      for (int64_t h = 0; h < op.num_heads; h++)
        context.kernels.rope(heads + h * op.head_dim, table, op.rotary_dim, op.interleaved);
    }
  });
}

namespace {

void store_row(const Kernels& kernels, KvDType dtype, const float* input, uint8_t* output, int64_t count, float scale) {
  if (dtype == KvDType::kBf16) {
    kernels.f32_to_bf16(input, reinterpret_cast<uint16_t*>(output), count);
  } else {
    kernels.f32_to_f8(input, output, count, scale);
  }
}

}  // namespace

void run(const KvStore& op, const OpContext& context) {
  const KvCache& cache = op.cache;
  for_rows(context, context.step.num_tokens, 2 * cache.num_kv_heads * cache.head_dim,
           [&](int64_t begin, int64_t end, uint32_t) {
             for (int64_t t = begin; t < end; t++) {
               const int64_t slot = context.step.slots[t];
               const float* row = op.tensor + t * op.row_width;
               for (int64_t h = 0; h < cache.num_kv_heads; h++) {
                 const int64_t offset =
                     cache.row_offset(slot / cache.block_size, h * cache.block_size + slot % cache.block_size);
                 const int64_t column = h * cache.head_dim;
                 store_row(context.kernels, cache.dtype, row + op.key_offset + column, cache.keys + offset,
                           cache.head_dim, cache.key_scale);
                 store_row(context.kernels, cache.dtype, row + op.value_offset + column, cache.values + offset,
                           cache.head_dim, cache.value_scale);
               }
             }
           });
}

void run(const GatedActivationCommand& op, const OpContext& context) {
  for_rows(context, context.rows(op.rows), 4 * op.width, [&](int64_t begin, int64_t end, uint32_t) {
    for (int64_t r = begin; r < end; r++) {
      const float* gate = op.input + r * 2 * op.width;
      context.kernels.gated_activation(gate, gate + op.width, op.output + r * op.width, op.width, op.activation);
    }
  });
}

void run(const GatherRows& op, const OpContext& context) {
  for_rows(context, context.step.num_logit_rows, op.width, [&](int64_t begin, int64_t end, uint32_t) {
    for (int64_t r = begin; r < end; r++) {
      std::memcpy(op.output + r * op.width, op.input + context.step.logit_rows[r] * op.width,
                  static_cast<size_t>(op.width) * sizeof(float));
    }
  });
}

}  // namespace moe
