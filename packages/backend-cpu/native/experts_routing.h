// The choices of a step, sorted by expert.
#ifndef MOE_BACKEND_CPU_EXPERTS_ROUTING_H_
#define MOE_BACKEND_CPU_EXPERTS_ROUTING_H_

#include <cstdint>

#include "moe/abi.h"
#include "work_split.h"

namespace moe {

// Pairs of one expert that somebody chose: [begin, end) of ExpertsRouting::pairs.
struct Segment {
  int32_t slot;
  int32_t begin;
  int32_t end;
};

struct ExpertsRouting {
  // [num_pairs]: choice = token * top_k + j, sorted by expert, then by token. Choices of other groups are left out.
  int32_t* pairs = nullptr;
  Segment* segments = nullptr;
  int64_t num_segments = 0;
  int64_t num_pairs = 0;

  // Takes room for up to `choices` of `num_experts`.
  static ExpertsRouting take(Carver& carver, int64_t choices, int64_t num_experts);

  // Counting sort. Answers the index of a choice outside the group, or -1.
  int64_t sort(const moe_experts_args& args, int64_t num_experts);

 private:
  // [num_experts + 1]
  int32_t* positions_ = nullptr;
};

}  // namespace moe

#endif  // MOE_BACKEND_CPU_EXPERTS_ROUTING_H_
