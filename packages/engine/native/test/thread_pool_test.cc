/* Tests of the thread pool and the executor that need no Node, made to be run under ThreadSanitizer too
 * (`npm run test:sanitize`). */
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "cpu/cpu_features.h"
#include "cpu/executor.h"
#include "cpu/thread_pool.h"

namespace moe::test {
namespace {

int failures = 0;
std::mt19937 random_bits(7);

void check(bool ok, uint32_t num_threads, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("FAILED with %u threads: %s\n", num_threads, what.c_str());
}

int64_t below(int64_t bound) { return static_cast<int64_t>(random_bits() % static_cast<uint64_t>(bound)); }

/* Long enough that workers go to sleep. */
void let_workers_sleep() {
  const auto until = std::chrono::steady_clock::now() + 3 * kAwake;
  while (std::chrono::steady_clock::now() < until) continue;
}

/* What a dispatch reads was written before it, what it writes is read after it; no item is lost or done twice. */
void test_dispatches(uint32_t num_threads) {
  ThreadPool pool(num_threads);
  std::vector<int64_t> input(1000), output(1000);
  bool complete = true, grained = true, numbered = true;
  for (int round = 0; round < 3000; round++) {
    if (round % 100 == 0) let_workers_sleep();
    const int64_t count = below(1000), grain = 1 + below(20);
    for (int64_t i = 0; i < count; i++) {
      input[static_cast<size_t>(i)] = round + i;
      output[static_cast<size_t>(i)] = 0;
    }
    std::atomic<bool> ok_grain{true}, ok_thread{true};
    pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, uint32_t thread) {
      if (begin % grain != 0 || (end % grain != 0 && end != count)) ok_grain = false;
      if (thread >= num_threads) ok_thread = false;
      for (int64_t i = begin; i < end; i++) output[static_cast<size_t>(i)] += input[static_cast<size_t>(i)] + 1;
    });
    for (int64_t i = 0; i < count; i++) complete = complete && output[static_cast<size_t>(i)] == round + i + 1;
    grained = grained && ok_grain;
    numbered = numbered && ok_thread;
  }
  check(complete, num_threads, "every item is done once");
  check(grained, num_threads, "intervals are multiples of the grain");
  check(numbered, num_threads, "thread numbers are less than the number of threads");
}

/* As thread_pool.h promises: an item may wait for one before it. */
void test_order(uint32_t num_threads) {
  ThreadPool pool(num_threads);
  bool ordered = true;
  for (int round = 0; round < 500; round++) {
    constexpr int64_t kFirst = 20, kSecond = 20;
    std::atomic<int64_t> done{0};
    std::atomic<int64_t> early{0};
    pool.parallel_for(kFirst + kSecond, 1, [&](int64_t begin, int64_t end, uint32_t) {
      for (int64_t i = begin; i < end; i++) {
        if (i < kFirst) {
          done.fetch_add(1);
          continue;
        }
        for (uint32_t turn = 0; done.load() < kFirst; turn++) spin(turn);
        if (done.load() < kFirst) early.fetch_add(1);
      }
    });
    ordered = ordered && early == 0 && done == kFirst;
  }
  check(ordered, num_threads, "an item can wait for those before it");
}

/* One step after the other, at once and after a rest; ending the executor waits for the last. */
void test_executor(uint32_t num_threads) {
  std::mutex mutex;
  std::condition_variable changed;
  int completed = 0;
  bool in_order = true;
  StepTimes last;
  const Program program = make_program({}, {1, 1, 1, 1, 1}, num_threads);
  std::vector<uint8_t> inputs(program.layout.byte_length);
  {
    Executor executor(num_threads, portable_kernels(), [&](StepResult result, StepTimes times) {
      const std::lock_guard lock(mutex);
      in_order = in_order && result.ok && times.began >= last.ended && times.ended >= times.began;
      last = times;
      completed++;
      changed.notify_one();
    });
    for (int step = 0; step < 500; step++) {
      if (step % 50 == 0) let_workers_sleep();
      executor.submit(&program, inputs.data());
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return completed == step + 1; });
    }
    executor.submit(&program, inputs.data());
  }
  check(in_order, num_threads, "steps succeed and follow one another");
  check(completed >= 500, num_threads, "every step completes");
}

}  // namespace
}  // namespace moe::test

int main() {
  using namespace moe::test;
  for (const uint32_t num_threads : {1u, 2u, 3u, 5u}) {
    test_dispatches(num_threads);
    test_order(num_threads);
    test_executor(num_threads);
    std::printf("ran with %u threads\n", num_threads);
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
