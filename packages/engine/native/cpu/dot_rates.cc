#include "dot_rates.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <initializer_list>

#include "thread_pool.h"

namespace moe {

DotLoops select_dot_loops([[maybe_unused]] const std::vector<std::string>& features) {
  [[maybe_unused]] const auto has_all = [&](std::initializer_list<const char*> wanted) {
    return std::all_of(wanted.begin(), wanted.end(), [&](const char* name) {
      return std::find(features.begin(), features.end(), name) != features.end();
    });
  };
#ifdef MOE_X86_64
  if (has_all({"avx512f", "avx512bw", "avx512vnni", "avx512bf16"})) return avx512_dot_loops();
  if (has_all({"avx2", "fma"})) return avx2_dot_loops();
#elif defined(MOE_ARM64)
  return has_all({"dotprod"}) ? neon_dotprod_dot_loops() : neon_dot_loops();
#endif
  return portable_dot_loops();
}

double measure_dot_rate(uint32_t num_threads, DotLoop loop) {
  using Clock = std::chrono::steady_clock;
  constexpr int kPasses = 15;
  constexpr uint64_t kRounds = 1u << 19; /* a few milliseconds */
  ThreadPool pool(num_threads);
  std::array<double, kPasses> rates{};
  std::atomic<uint64_t> operations{0};
  pool.wake();
  for (double& rate : rates) {
    operations.store(0, std::memory_order_relaxed);
    const auto from = Clock::now();
    pool.parallel_for(num_threads, 1, [&](int64_t begin, int64_t end, uint32_t) {
      for (int64_t i = begin; i < end; i++) operations.fetch_add(loop(kRounds), std::memory_order_relaxed);
    });
    rate = static_cast<double>(operations.load()) / std::chrono::duration<double>(Clock::now() - from).count();
  }
  /* The best pass: nothing but the processor bounds it, and a pass in which two threads had to share a core says nothing
   * about that. */
  return *std::max_element(rates.begin(), rates.end());
}

}  // namespace moe
