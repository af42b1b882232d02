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

/* Columns that are rounded at once, before each goes to its place in the cache. */
constexpr int64_t kStoredColumns = 256;

/* One position's keys and values of one head to their places in a block, in a cache of elements of type T. */
template <class T>
void store_head(const float* keys, const float* values, const KvCache& cache, int64_t block_offset, int64_t position,
                const auto& round) {
  T* key_block = reinterpret_cast<T*>(cache.keys + block_offset) + 2 * position;
  T* value_block = reinterpret_cast<T*>(cache.values + block_offset) + position / 2 * 2 * cache.head_dim + position % 2;
  T rounded[kStoredColumns];
  for (int64_t first = 0; first < cache.head_dim; first += kStoredColumns) {
    const int64_t count = std::min(kStoredColumns, cache.head_dim - first);
    round(keys + first, rounded, count, cache.key_scale);
    for (int64_t d = 0; d < count; d += 2)
      std::memcpy(key_block + (first + d) * kKvBlock, rounded + d, 2 * sizeof(T));
    round(values + first, rounded, count, cache.value_scale);
    for (int64_t d = 0; d < count; d++) value_block[2 * (first + d)] = rounded[d];
  }
}

}  // namespace

void run(const KvStore& op, const OpContext& context) {
  const KvCache& cache = op.cache;
  const Kernels& kernels = context.kernels;
  for_rows(context, context.step.num_tokens, 2 * cache.num_kv_heads * cache.head_dim,
           [&](int64_t begin, int64_t end, uint32_t) {
             for (int64_t t = begin; t < end; t++) {
               const int64_t slot = context.step.slots[t];
               for (int64_t h = 0; h < cache.num_kv_heads; h++) {
                 const float* row = op.tensor + t * op.row_width + h * cache.head_dim;
                 const float *keys = row + op.key_offset, *values = row + op.value_offset;
                 const int64_t offset = cache.block_offset(slot / kKvBlock, h), position = slot % kKvBlock;
                 if (cache.dtype == KvDType::kBf16) {
                   store_head<uint16_t>(keys, values, cache, offset, position,
                                        [&](const float* x, uint16_t* y, int64_t count, float) {
                                          kernels.f32_to_bf16(x, y, count);
                                        });
                 } else {
                   store_head<uint8_t>(keys, values, cache, offset, position, kernels.f32_to_f8);
                 }
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
