#ifndef MOE_CPU_COMMANDS_H_
#define MOE_CPU_COMMANDS_H_

#include <moe/abi.h>

#include <cstdint>
#include <string>
#include <variant>

#include "isa/kernels.h"

/*
 * The commands of src/device/commands.ts with pointers for buffers. Shapes and meaning are said there; here only what
 * differs. Sizes are checked against the buffers when a program is made (program.cc) and trusted afterwards.
 */
namespace moe {

enum class RowCount : int32_t { kTokens, kLogitRows };

/* Memory that a command reads or writes, with the length that it must not exceed. */
template <class T>
struct Span {
  T* data = nullptr;
  uint64_t bytes = 0;
  T& operator[](int64_t i) const { return data[i]; }
  T* operator+(int64_t i) const { return data + i; }
};

struct Embed {
  Span<const uint16_t> table;
  int64_t vocab_size, width;
  Span<float> output;
};

struct RmsNorm {
  RowCount rows;
  int64_t width;
  float eps;
  Span<const float> input, weight;
  Span<float> output;
};

struct Linear {
  RowCount rows;
  moe_kernel* kernel;
  int64_t in_features, out_features;
  Span<const float> input;
  Span<float> output;
  bool accumulate;
};

struct HeadRmsNorm {
  Span<float> tensor;
  int64_t row_width, column_offset, num_heads, head_dim;
  float eps;
  Span<const float> weight;
};

struct Rope {
  Span<float> tensor;
  int64_t row_width, column_offset, num_heads, head_dim, rotary_dim;
  bool interleaved;
  Span<const float> table;
  int64_t max_positions;
};

struct KvCache {
  KvDType dtype;
  Span<uint8_t> keys, values;
  int64_t num_blocks, block_size, num_kv_heads, head_dim;
  float key_scale, value_scale;

  int64_t element_bytes() const { return dtype == KvDType::kBf16 ? 2 : 1; }
  /* Byte offset of a head in a block; kernels.h says how its elements lie. */
  int64_t block_offset(int64_t block, int64_t head) const {
    return (block * num_kv_heads + head) * kKvBlock * head_dim * element_bytes();
  }
};

struct KvStore {
  Span<const float> tensor;
  int64_t row_width, key_offset, value_offset;
  KvCache cache;
};

struct Attention {
  Span<const float> queries;
  int64_t row_width, query_offset, num_heads;
  float scale;
  KvCache cache;
  int64_t sliding_window;
  Span<const float> sinks; /* data is null: none */
  Span<float> output;
};

struct RoutingMethod {
  bool sigmoid, topk_first, renormalize;
  int64_t num_groups, topk_groups;
  float scaling_factor;
};

struct Route {
  int64_t hidden_size, num_experts, top_k;
  RoutingMethod method;
  Span<const float> input, weight, bias, correction_bias; /* both biases may be null */
  Span<int32_t> topk_ids;
  Span<float> topk_weights;
};

struct MapSlots {
  int64_t top_k, num_experts;
  Span<const int32_t> topk_ids, slots;
  Span<int32_t> topk_slots;
};

struct Experts {
  moe_kernel* kernel;
  int64_t hidden_size, top_k;
  Span<const float> input;
  Span<const int32_t> topk_slots;
  Span<const float> topk_weights;
  Span<float> output;
  bool accumulate;
};

struct GatedActivationCommand {
  RowCount rows;
  GatedActivation activation;
  int64_t width;
  Span<const float> input;
  Span<float> output;
};

struct GatherRows {
  int64_t width;
  Span<const float> input;
  Span<float> output;
};

struct Sample {
  Span<float> logits;
  int64_t vocab_size;
  Span<int32_t> token_ids;
  Span<float> logprobs;
  Span<int32_t> ranks;
  int64_t max_top_logprobs;
  Span<int32_t> top_ids;
  Span<float> top_logprobs;
};

using Operation = std::variant<Embed, RmsNorm, Linear, HeadRmsNorm, Rope, KvStore, Attention, Route, MapSlots, Experts,
                               GatedActivationCommand, GatherRows, Sample>;

struct Command {
  /* For messages: `linear model.layers.0.self_attn.qkv_proj`. */
  std::string name;
  Operation operation;
};

}  // namespace moe

#endif  // MOE_CPU_COMMANDS_H_
