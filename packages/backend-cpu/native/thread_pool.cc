#include "thread_pool.h"

#include <algorithm>

#include "packed_weights.h"

namespace moe {
namespace {

// Turns of a waiting worker before it sleeps: a kernel's next parallel_for follows within microseconds.
constexpr int kSpins = 20000;

}  // namespace

ThreadPool::ThreadPool(uint32_t num_threads) {
  pool_.size = sizeof(moe_pool);
  pool_.num_threads = std::max(1u, num_threads);
  pool_.context = this;
  pool_.parallel_for = [](void* context, int64_t count, int64_t grain, moe_task task, void* arg) {
    static_cast<ThreadPool*>(context)->run(count, grain, task, arg);
  };
  for (uint32_t t = 1; t < pool_.num_threads; ++t) workers_.emplace_back([this, t] { work(t); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    ++generation_;
  }
  start_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::drain(uint32_t thread) {
  for (int64_t begin = next_.fetch_add(grain_); begin < count_; begin = next_.fetch_add(grain_)) {
    task_(arg_, begin, std::min(count_, begin + grain_), thread);
  }
}

void ThreadPool::work(uint32_t thread) {
  uint64_t seen = 0;
  for (;;) {
    for (int i = 0; i < kSpins && generation_.load(std::memory_order_acquire) == seen; ++i) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    {
      std::unique_lock<std::mutex> lock(mutex_);
      start_.wait(lock, [&] { return generation_.load() != seen; });
      seen = generation_.load();
      if (stop_) return;
    }
    drain(thread);
    if (active_.fetch_sub(1) == 1) {
      const std::lock_guard<std::mutex> lock(mutex_);
      done_.notify_one();
    }
  }
}

void ThreadPool::run(int64_t count, int64_t grain, moe_task task, void* arg) {
  if (count <= 0) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    next_ = 0;
    count_ = count;
    grain_ = std::max<int64_t>(1, grain);
    task_ = task;
    arg_ = arg;
    active_ = static_cast<uint32_t>(workers_.size());
    ++generation_;
  }
  start_.notify_all();
  drain(0);
  for (int i = 0; i < kSpins && active_.load(std::memory_order_acquire) != 0; ++i) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [&] { return active_.load() == 0; });
}

int32_t run_kernel(const moe_kernel& kernel, const void* args, int64_t num_tokens, const moe_pool* pool,
                   moe_error* error) {
  // Kept between calls, so that a benchmark does not measure page faults.
  static thread_local Buffer workspace;
  const uint64_t needed = kernel.workspace_bytes(kernel.self, num_tokens, pool->num_threads);
  if (workspace.size() < needed) workspace = Buffer(needed);
  moe_exec exec{};
  exec.size = sizeof(moe_exec);
  exec.pool = pool;
  exec.workspace = workspace.data();
  exec.workspace_bytes = workspace.size();
  return kernel.run(kernel.self, args, &exec, error);
}

}  // namespace moe
