// A plain pool behind the ABI's moe_pool, so that kernels can run without an engine: tests, the conformance suite, the
// benchmark.
#ifndef MOE_BACKEND_CPU_THREAD_POOL_H_
#define MOE_BACKEND_CPU_THREAD_POOL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "moe/abi.h"

namespace moe {

class ThreadPool {
 public:
  // `num_threads` counts the calling thread.
  explicit ThreadPool(uint32_t num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  const moe_pool* abi() const { return &pool_; }

 private:
  void work(uint32_t thread);
  void drain(uint32_t thread);
  void run(int64_t count, int64_t grain, moe_task task, void* arg);

  moe_pool pool_{};
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable start_;
  std::condition_variable done_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<uint32_t> active_{0};
  bool stop_ = false;

  std::atomic<int64_t> next_{0};
  int64_t count_ = 0;
  int64_t grain_ = 1;
  moe_task task_ = nullptr;
  void* arg_ = nullptr;
};

// Runs a kernel of either kind with a workspace of its own.
int32_t run_kernel(const moe_kernel& kernel, const void* args, int64_t num_tokens, const moe_pool* pool,
                   moe_error* error);

}  // namespace moe

#endif  // MOE_BACKEND_CPU_THREAD_POOL_H_
