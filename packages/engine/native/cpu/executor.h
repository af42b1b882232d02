#ifndef MOE_CPU_EXECUTOR_H_
#define MOE_CPU_EXECUTOR_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

#include "program.h"
#include "thread_pool.h"

namespace moe {

/*
 * Runs one program at a time on a thread of its own, which is thread 0 of the pool. The thread that submits is never
 * the one that computes.
 */
class Executor {
 public:
  /* Called on the executor's thread when a step has ended. Whoever submitted owns the next move. */
  using Completion = std::function<void(StepResult result, StepTimes times)>;

  Executor(uint32_t num_threads, const Kernels& kernels, Completion completion);
  /* Waits for the running step. */
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  uint32_t num_threads() const { return pool_.num_threads(); }

  /* Starts a step. The program and the buffer must live until completion; the step before must have completed. */
  void submit(const Program* program, const uint8_t* step_buffer);

 private:
  struct Job {
    const Program* program = nullptr;
    const uint8_t* step_buffer = nullptr;
  };

  void work();
  bool next_job(Job& job);

  ThreadPool pool_;
  const Kernels& kernels_;
  const Completion completion_;
  std::mutex mutex_;
  std::condition_variable changed_;
  Job job_;
  /* True while job_ waits to be taken; written under the mutex, read without it by the spinning thread. */
  std::atomic<bool> has_job_{false};
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace moe

#endif  // MOE_CPU_EXECUTOR_H_
