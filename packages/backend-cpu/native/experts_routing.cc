#include "experts_routing.h"

#include <algorithm>

namespace moe {

ExpertsRouting ExpertsRouting::take(Carver& carver, int64_t choices, int64_t num_experts) {
  ExpertsRouting routing;
  routing.pairs = carver.take<int32_t>(choices);
  routing.segments = carver.take<Segment>(num_experts);
  routing.positions_ = carver.take<int32_t>(num_experts + 1);
  return routing;
}

int64_t ExpertsRouting::sort(const moe_experts_args& args, int64_t num_experts) {
  const int64_t choices = args.num_tokens * args.top_k;
  std::fill(positions_, positions_ + num_experts + 1, 0);
  for (int64_t i = 0; i < choices; ++i) {
    const int32_t slot = args.topk_slots[i];
    if (slot < -1 || slot >= num_experts) return i;
    if (slot >= 0) ++positions_[slot + 1];
  }
  num_segments = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    const int32_t begin = positions_[e];
    positions_[e + 1] += begin;
    if (positions_[e + 1] > begin) segments[num_segments++] = {static_cast<int32_t>(e), begin, positions_[e + 1]};
  }
  num_pairs = positions_[num_experts];
  for (int64_t i = 0; i < choices; ++i) {
    const int32_t slot = args.topk_slots[i];
    if (slot >= 0) pairs[positions_[slot]++] = static_cast<int32_t>(i);
  }
  return -1;
}

}  // namespace moe
