#include "executor.h"

#include <chrono>
#include <exception>
#include <utility>

namespace moe {
namespace {

int64_t steady_ns() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Executor::Executor(uint32_t num_threads, const Kernels& kernels, Completion completion)
    : pool_(num_threads), kernels_(kernels), completion_(std::move(completion)), thread_([this] { work(); }) {}

Executor::~Executor() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void Executor::submit(const Program* program, const uint8_t* step_buffer) {
  {
    const std::lock_guard lock(mutex_);
    job_ = {program, step_buffer};
    has_job_.store(true, std::memory_order_release);
  }
  changed_.notify_one();
}

bool Executor::next_job(Job& job) {
  const auto deadline = std::chrono::steady_clock::now() + kAwake;
  for (uint32_t turn = 0; !has_job_.load(std::memory_order_acquire); turn++) {
    if (turn % kSpinTurns == 0 && std::chrono::steady_clock::now() > deadline) break;
    spin(turn);
  }
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stopping_ || has_job_.load(std::memory_order_relaxed); });
  if (stopping_) return false;
  job = job_;
  has_job_.store(false, std::memory_order_relaxed);
  return true;
}

void Executor::work() {
  Job job;
  while (next_job(job)) {
    StepResult result;
    const int64_t began = steady_ns();
    pool_.wake();
    try {
      result = run_program(*job.program, job.step_buffer, pool_, kernels_);
    } catch (const std::exception& error) {
      /* Kernels must not throw; one that does costs its step, not the process. */
      result = {false, "a command", error.what()};
    }
    completion_(std::move(result), {began, steady_ns()});
  }
}

}  // namespace moe
