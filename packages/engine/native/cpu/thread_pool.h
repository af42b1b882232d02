#ifndef MOE_CPU_THREAD_POOL_H_
#define MOE_CPU_THREAD_POOL_H_

#include <moe/abi.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace moe {

/*
 * How long a thread waits awake before it sleeps: for the next dispatch of a step, for the next step. Longer than any
 * operator that runs on one thread takes with few rows, and longer than JavaScript usually takes from one step to the
 * next. Waking a thread whose core has gone to sleep costs tens of microseconds, on both sides.
 */
inline constexpr auto kAwake = std::chrono::microseconds(100);

/*
 * One turn of waiting awake, counted by `turn`. Now and then it offers the core to others: between steps to the
 * JavaScript thread, which so finds a core that is awake; on a busy machine to the thread that is waited for, which may
 * be waiting for this very core.
 */
void spin(uint32_t turn);

/* Turns between two such offers, and between two looks at the clock, which cost as much as a few turns. */
inline constexpr uint32_t kSpinTurns = 32;

/*
 * The threads of one engine. The thread that calls parallel_for is thread 0 and works too; the others, numbered from 1,
 * stay awake for kAwake after a dispatch, because the next one must cost a microsecond.
 *
 * One thread at a time may use it.
 */
class ThreadPool {
 public:
  explicit ThreadPool(uint32_t num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  uint32_t num_threads() const { return static_cast<uint32_t>(workers_.size()) + 1; }
  /* The same pool as plugins see it; valid as long as the pool. */
  const moe_pool* c_pool() const { return &c_pool_; }

  /* Wakes the workers, which takes longer than a dispatch, so that they are there when the first one comes. */
  void wake();

  /* As moe_pool.parallel_for. Allocates nothing. */
  void run(int64_t count, int64_t grain, moe_task task, void* arg);

  /* run() for a callable (int64_t begin, int64_t end, uint32_t thread). */
  template <class Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    using Callable = std::remove_reference_t<Body>;
    run(
        count, grain,
        [](void* arg, int64_t begin, int64_t end, uint32_t thread) {
          (*static_cast<Callable*>(arg))(begin, end, thread);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  /*
   * Low 16 bits: workers inside the current dispatch. Bit 16: open, workers may join. High 32 bits: number of the
   * dispatch. The caller closes a dispatch when all intervals are taken and waits only for those inside, never for one
   * that still sleeps.
   */
  static constexpr uint64_t kOpen = 1u << 16;
  static constexpr uint64_t kJoined = kOpen - 1;

  void work(uint32_t thread);
  void take_intervals(uint32_t thread);
  bool sleep_until_changed(uint32_t seen_generation);

  struct Dispatch {
    moe_task task;
    void* arg;
    int64_t count;
    int64_t interval;
  };

  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) Dispatch dispatch_{};
  alignas(64) std::atomic<bool> stopping_{false};
  /* Changes whenever a sleeping worker has a reason to look again. */
  std::atomic<uint32_t> generation_{0};
  std::atomic<uint32_t> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  moe_pool c_pool_{};
  std::vector<std::thread> workers_;
};

}  // namespace moe

#endif  // MOE_CPU_THREAD_POOL_H_
