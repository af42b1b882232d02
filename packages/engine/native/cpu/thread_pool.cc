#include "thread_pool.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace moe {
namespace {

using Clock = std::chrono::steady_clock;

/* Intervals per thread that a dispatch aims at: enough that a thread the system took away for a while does not hold up
 * the rest. */
constexpr int64_t kIntervalsPerThread = 16;

}  // namespace

void spin(uint32_t turn) {
  if (turn % kSpinTurns == kSpinTurns - 1) return std::this_thread::yield();
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

ThreadPool::ThreadPool(uint32_t num_threads) {
  c_pool_.size = sizeof c_pool_;
  c_pool_.num_threads = num_threads;
  c_pool_.context = this;
  c_pool_.parallel_for = [](void* context, int64_t count, int64_t grain, moe_task task, void* arg) {
    static_cast<ThreadPool*>(context)->run(count, grain, task, arg);
  };
  workers_.reserve(num_threads - 1);
  for (uint32_t thread = 1; thread < num_threads; thread++) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  wake();
  for (std::thread& worker : workers_) worker.join();
}

/*
 * A worker announces itself in sleepers_ and then looks at generation_; here it is the other way round. All four
 * accesses are sequentially consistent, so one of the two sees the other, and no wake-up is lost.
 */
void ThreadPool::wake() {
  generation_.fetch_add(1);
  if (sleepers_.load() == 0) return;
  {
    const std::lock_guard lock(mutex_);
  }
  changed_.notify_all();
}

bool ThreadPool::sleep_until_changed(uint32_t seen_generation) {
  std::unique_lock lock(mutex_);
  sleepers_.fetch_add(1);
  changed_.wait(lock, [&] { return stopping_.load() || generation_.load() != seen_generation; });
  sleepers_.fetch_sub(1);
  return !stopping_.load();
}

void ThreadPool::run(int64_t count, int64_t grain, moe_task task, void* arg) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (workers_.empty() || count <= grain) {
    task(arg, 0, count, 0);
    return;
  }
  const int64_t wanted = count / (int64_t{num_threads()} * kIntervalsPerThread);
  dispatch_ = {task, arg, count, std::max(grain, wanted / grain * grain)};
  next_.store(0, std::memory_order_relaxed);
  const uint64_t number = (state_.load(std::memory_order_relaxed) >> 32) + 1;
  state_.store(number << 32 | kOpen, std::memory_order_release);
  wake();
  take_intervals(0);
  state_.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (uint32_t turn = 0; (state_.load(std::memory_order_acquire) & kJoined) != 0; turn++) spin(turn);
}

void ThreadPool::take_intervals(uint32_t thread) {
  const Dispatch dispatch = dispatch_;
  for (;;) {
    const int64_t begin = next_.fetch_add(dispatch.interval, std::memory_order_relaxed);
    if (begin >= dispatch.count) return;
    dispatch.task(dispatch.arg, begin, std::min(begin + dispatch.interval, dispatch.count), thread);
  }
}

void ThreadPool::work(uint32_t thread) {
  uint64_t last_number = 0;
  auto deadline = Clock::now();
  /* Unsigned: a worker that lives for minutes counts past 2^31. */
  for (uint32_t turn = 0;; turn++) {
    const uint32_t generation = generation_.load();
    uint64_t state = state_.load(std::memory_order_acquire);
    if ((state & kOpen) != 0 && state >> 32 != last_number) {
      if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
      last_number = state >> 32;
      take_intervals(thread);
      state_.fetch_sub(1, std::memory_order_release);
      deadline = Clock::now() + kAwake;
      continue;
    }
    if (turn % kSpinTurns != 0 || Clock::now() < deadline) {
      spin(turn);
      continue;
    }
    if (!sleep_until_changed(generation)) return;
    deadline = Clock::now() + kAwake;
  }
}

}  // namespace moe
