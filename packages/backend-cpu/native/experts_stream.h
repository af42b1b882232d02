// Experts for few tokens: weights are read once, so what counts is the order in which memory is read and how long
// threads wait for each other.
//
// Two kinds of pieces, each a run of neighbouring tiles of one expert: first gate and up of every expert, then down of
// every expert, all in one parallel_for_each. Pieces are begun in ascending order, so that a thread that comes to an
// expert's down projection waits, if at all, only for gate and up pieces that other threads are computing at that
// moment. The thread that finishes the last expert's contribution to some columns adds them up. There is no barrier in
// between.
#ifndef MOE_BACKEND_CPU_EXPERTS_STREAM_H_
#define MOE_BACKEND_CPU_EXPERTS_STREAM_H_

#include <atomic>

#include "expert_tiles.h"

namespace moe {

class ExpertsStream {
 public:
  // Whether all contributions of so many choices stay in a cache.
  static bool suits(const ExpertTiles& tiles, int64_t choices);

  // Floats that run() needs for up to so many choices. Never less for more choices.
  static int64_t num_partials(const ExpertTiles& tiles, int64_t choices);

  // Takes room for the counters.
  static ExpertsStream take(Carver& carver, const ExpertTiles& tiles);

  void run(const ExpertTiles& tiles, const ExpertsRun& run, const moe_pool* pool, float* partials) const;

 private:
  std::atomic<int64_t>* next_ = nullptr;
  // [num_experts]: pieces of gate and up that are done, by segment.
  std::atomic<int32_t>* pieces_done_ = nullptr;
  // [num_experts]: whether the segment's intermediates may be read.
  std::atomic<int32_t>* ready_ = nullptr;
  // [down_tiles]: segments that have contributed to a run of columns.
  std::atomic<int32_t>* contributed_ = nullptr;
};

}  // namespace moe

#endif  // MOE_BACKEND_CPU_EXPERTS_STREAM_H_
