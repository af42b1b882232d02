#include "route.h"

#include <cstring>
#include <limits>

namespace moe {
namespace {

/* Experts of one piece of the router's product. */
constexpr int64_t kExpertTile = 16;

/* Per thread: what choosing needs for one token. */
struct ChoiceScratch {
  ChoiceScratch(Scratch& scratch, const Route& op) {
    scores = scratch.take<float>(op.num_experts);
    choice = scratch.take<float>(op.num_experts);
    group_scores = scratch.take<float>(op.method.num_groups);
    chosen = scratch.take<float>(op.top_k);
  }
  float* scores;       /* [num_experts]: what weights are made of */
  float* choice;       /* [num_experts]: what the choice is made by; −Infinity = not to be chosen */
  float* group_scores; /* [num_groups] */
  float* chosen;       /* [top_k] */
};

uint64_t choice_bytes(const Route& op) {
  Scratch count(nullptr);
  ChoiceScratch(count, op);
  return count.used();
}

/* Keeps the sum of sigmoid scores from being zero, as DeepSeek-V3's published code does. */
constexpr float kLeastSum = 1e-20f;

constexpr float kNever = -std::numeric_limits<float>::infinity();

/* Index of the largest value, the lowest on ties; NaN is taken only where there is nothing else. */
int64_t largest(const float* values, int64_t count) {
  int64_t best = 0;
  for (int64_t i = 1; i < count; i++) {
    if (values[i] > values[best] || (values[best] != values[best] && values[i] == values[i])) best = i;
  }
  return best;
}

/* Keeps the groups with the best sums of their two best experts (DeepSeek-V3, section 2.1.2). */
void limit_groups(const Route& op, const ChoiceScratch& scratch) {
  const int64_t groups = op.method.num_groups, size = op.num_experts / groups;
  for (int64_t g = 0; g < groups; g++) {
    const float* experts = scratch.choice + g * size;
    const int64_t first = largest(experts, size);
    float second = kNever;
    for (int64_t e = 0; e < size; e++) {
      if (e != first && experts[e] > second) second = experts[e];
    }
    scratch.group_scores[g] = size > 1 ? experts[first] + second : experts[first];
  }
  for (int64_t rank = 0; rank < op.method.topk_groups; rank++) {
    const int64_t g = largest(scratch.group_scores, groups);
    scratch.group_scores[g] = std::numeric_limits<float>::quiet_NaN(); /* marks the group as kept */
  }
  for (int64_t g = 0; g < groups; g++) {
    if (scratch.group_scores[g] == scratch.group_scores[g]) std::fill_n(scratch.choice + g * size, size, kNever);
  }
}

void choose(const Route& op, const Kernels& kernels, const float* logits, const ChoiceScratch& scratch, int32_t* ids,
            float* weights) {
  const RoutingMethod& method = op.method;
  const int64_t experts = op.num_experts, k = op.top_k;
  const auto score = [&](float* values, int64_t count) {
    if (method.sigmoid) return kernels.sigmoid(values, count);
    kernels.scale(values, 1.0f / kernels.softmax_terms(values, count), values, count);
  };
  std::memcpy(scratch.scores, logits, static_cast<size_t>(experts) * sizeof(float));
  if (!method.topk_first) score(scratch.scores, experts);
  for (int64_t e = 0; e < experts; e++) {
    scratch.choice[e] = scratch.scores[e] + (op.correction_bias.data == nullptr ? 0.0f : op.correction_bias[e]);
  }
  if (method.num_groups > 1) limit_groups(op, scratch);

  for (int64_t j = 0; j < k; j++) {
    int64_t expert = largest(scratch.choice, experts);
    /* Everything left is −Infinity or NaN: any expert will do that has not been taken, and the weights show what is
     * wrong. */
    for (int64_t e = 0; std::find(ids, ids + j, expert) != ids + j; e++) expert = e;
    ids[j] = static_cast<int32_t>(expert);
    weights[j] = scratch.scores[expert];
    scratch.choice[expert] = kNever;
  }
  if (method.topk_first) score(weights, k);

  /* By falling weight; a correction bias and topk-first's ties may have given another order. */
  for (int64_t j = 1; j < k; j++) {
    const float weight = weights[j];
    const int32_t id = ids[j];
    int64_t place = j;
    for (; place > 0 && (weights[place - 1] < weight || (weights[place - 1] == weight && ids[place - 1] > id));
         place--) {
      weights[place] = weights[place - 1];
      ids[place] = ids[place - 1];
    }
    weights[place] = weight;
    ids[place] = id;
  }
  float sum = kLeastSum;
  for (int64_t j = 0; j < k; j++) sum += weights[j];
  for (int64_t j = 0; j < k; j++)
    weights[j] *= method.renormalize ? method.scaling_factor / sum : method.scaling_factor;
}

/* How many different experts the tokens chose. `seen`: [num_experts], scratch. */
int64_t count_chosen(const Route& op, int64_t tokens, uint8_t* seen) {
  std::fill_n(seen, op.num_experts, uint8_t{0});
  int64_t count = 0;
  for (int64_t i = 0; i < tokens * op.top_k; i++) {
    uint8_t& mark = seen[op.topk_ids[i]];
    count += 1 - mark;
    mark = 1;
  }
  return count;
}

}  // namespace

/*
 * First the product of all tokens with all experts' rows, in pieces of kMaxQueryRows by kExpertTile so that also one
 * token keeps all threads reading; then the choice, token by token.
 */
void run(const Route& op, const OpContext& context) {
  const int64_t tokens = context.step.num_tokens, experts = op.num_experts;
  Scratch shared(context.workspace);
  float* logits = shared.take<float>(tokens * experts);
  const uint64_t thread_bytes = choice_bytes(op);
  uint8_t* threads = shared.take<uint8_t>(static_cast<int64_t>(thread_bytes * context.pool.num_threads()));
  uint8_t* seen = shared.take<uint8_t>(experts);

  const int64_t expert_tiles = (experts + kExpertTile - 1) / kExpertTile;
  const int64_t token_tiles = (tokens + kMaxQueryRows - 1) / kMaxQueryRows;
  const int64_t tile_elements = std::min<int64_t>(tokens, kMaxQueryRows) * kExpertTile * op.hidden_size;
  for_rows(context, expert_tiles * token_tiles, tile_elements, [&](int64_t begin, int64_t end, uint32_t) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t expert = i % expert_tiles * kExpertTile, token = i / expert_tiles * kMaxQueryRows;
      const int64_t num_experts = std::min(kExpertTile, experts - expert),
                    num_tokens = std::min<int64_t>(kMaxQueryRows, tokens - token);
      float* output = logits + token * experts + expert;
      context.kernels.matmul_f32(op.input + token * op.hidden_size, op.hidden_size, static_cast<int32_t>(num_tokens),
                                 op.weight + expert * op.hidden_size, num_experts, op.hidden_size, output, experts);
      if (op.bias.data == nullptr) continue;
      for (int64_t t = 0; t < num_tokens; t++) {
        for (int64_t e = 0; e < num_experts; e++) output[t * experts + e] += op.bias[expert + e];
      }
    }
  });
  for_rows(context, tokens, (op.top_k + 4) * experts, [&](int64_t begin, int64_t end, uint32_t thread) {
    Scratch memory(threads + thread_bytes * thread);
    const ChoiceScratch scratch(memory, op);
    for (int64_t t = begin; t < end; t++) {
      choose(op, context.kernels, logits + t * experts, scratch, op.topk_ids + t * op.top_k,
             op.topk_weights + t * op.top_k);
    }
  });
  context.counters.experts_chosen += count_chosen(op, tokens, seen);
}

uint64_t workspace_bytes(const Route& op, const StepLimits& limits, uint32_t num_threads) {
  Scratch count(nullptr);
  count.take<float>(limits.max_num_tokens * op.num_experts);
  count.take<uint8_t>(static_cast<int64_t>(choice_bytes(op) * num_threads));
  count.take<uint8_t>(op.num_experts);
  return count.used();
}

void run(const MapSlots& op, const OpContext& context) {
  for_rows(context, context.step.num_tokens, op.top_k, [&](int64_t begin, int64_t end, uint32_t) {
    for (int64_t i = begin * op.top_k; i < end * op.top_k; i++) {
      const int32_t expert = op.topk_ids[i];
      op.topk_slots[i] = expert >= 0 && expert < op.num_experts ? op.slots[expert] : -1;
    }
  });
}

}  // namespace moe
