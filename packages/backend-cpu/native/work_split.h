// How a kernel cuts its work: into intervals for threads, and into blocks that stay in a cache.
#ifndef MOE_BACKEND_CPU_WORK_SPLIT_H_
#define MOE_BACKEND_CPU_WORK_SPLIT_H_

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "kernels/isa_kernels.h"
#include "moe/abi.h"

namespace moe {

// Inputs and weights that one core works on at a time, in bytes: together they leave room in a 1 MiB second-level
// cache.
inline constexpr int64_t kInputBlockBytes = 256 << 10;
inline constexpr int64_t kWeightBlockBytes = 160 << 10;

// Below this an interval costs more to hand out than it saves; nanoseconds. Waking a thread that spins takes one or two
// thousand.
inline constexpr double kGrainNs = 4000.0;
// What a core is assumed to do; only the size of intervals depends on it, never a result.
inline constexpr double kBytesPerNs = 15.0;
inline constexpr double kProductsPerNs = 80.0;

// Raises `grain` so that few intervals are as many as the threads can share evenly: three for two threads would take as
// long as two each.
inline int64_t balanced_grain(int64_t count, int64_t grain, int64_t num_threads) {
  const int64_t intervals = count / grain;
  if (intervals >= 8 * num_threads) return grain;
  const int64_t even = intervals < num_threads ? intervals : intervals / num_threads * num_threads;
  return ceil_div(count, std::max<int64_t>(even, 1));
}

// Calls body(begin, end, thread) for intervals that cover [0, count). `body` must not throw.
template <typename Body>
void parallel_for(const moe_pool* pool, int64_t count, int64_t grain, Body& body) {
  if (count <= 0) return;
  if (pool == nullptr || pool->num_threads < 2 || count <= grain) {
    body(int64_t{0}, count, uint32_t{0});
    return;
  }
  pool->parallel_for(
      pool->context, count, balanced_grain(count, grain, pool->num_threads),
      [](void* arg, int64_t begin, int64_t end, uint32_t thread) { (*static_cast<Body*>(arg))(begin, end, thread); },
      &body);
}

// Calls body(item) for [0, count). Items are begun in ascending order, each as soon as a thread is free, so an item may
// wait for those before it: somebody is at work on them. `next`: shared by the threads.
template <typename Body>
void parallel_for_each(const moe_pool* pool, int64_t count, std::atomic<int64_t>& next, Body& body) {
  next.store(0, std::memory_order_relaxed);
  auto take = [&](int64_t, int64_t, uint32_t) {
    for (int64_t item = next.fetch_add(1); item < count; item = next.fetch_add(1)) body(item);
  };
  parallel_for(pool, pool == nullptr ? 1 : pool->num_threads, 1, take);
}

// Items per interval when one item reads `bytes` of weights and makes `products` multiplications.
inline int64_t grain_for(double bytes, double products) {
  const double ns = std::max(bytes / kBytesPerNs, products / kProductsPerNs);
  return std::max<int64_t>(1, static_cast<int64_t>(kGrainNs / std::max(ns, 1.0)));
}

// Splits `count` tokens into the fewest calls of a tile function, of nearly equal size: calls body(first, num_tokens).
template <typename Body>
void for_token_blocks(int64_t count, Body body) {
  const int64_t blocks = ceil_div(count, kMaxTileTokens);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = count * b / blocks;
    body(first, static_cast<int>(count * (b + 1) / blocks - first));
  }
}

// Hands out pieces of the workspace, 64-byte aligned. With a null base it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<uint8_t*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    uint8_t* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += static_cast<uint64_t>(round_up(count * static_cast<int64_t>(sizeof(T)), kLine));
    return reinterpret_cast<T*>(piece);
  }
  uint64_t used() const { return used_; }

 private:
  uint8_t* base_;
  uint64_t used_ = 0;
};

}  // namespace moe

#endif  // MOE_BACKEND_CPU_WORK_SPLIT_H_
