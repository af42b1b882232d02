#include "bandwidth.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

#include "device_memory.h"
#include "thread_pool.h"

namespace moe {
namespace {

constexpr uint64_t kLine = 64;

/* The compiler turns the four sums into vector registers; the result keeps it from leaving the loads out. */
uint64_t read_lines(const uint8_t* data, uint64_t bytes) {
  std::array<uint64_t, 8> sums{};
  for (uint64_t i = 0; i + kLine <= bytes; i += kLine) {
    __builtin_prefetch(data + i + 32 * kLine);
    std::array<uint64_t, 8> words;
    std::memcpy(words.data(), data + i, kLine);
    for (size_t k = 0; k < words.size(); k++) sums[k] ^= words[k];
  }
  uint64_t all = 0;
  for (const uint64_t sum : sums) all ^= sum;
  return all;
}

}  // namespace

double measure_bandwidth(uint32_t num_threads, uint64_t total_bytes, uint64_t piece_bytes) {
  using Clock = std::chrono::steady_clock;
  constexpr int kPasses = 5;
  const uint64_t share = std::max(kLine, piece_bytes / num_threads / kLine * kLine);
  const uint64_t piece = share * num_threads;
  const uint64_t num_pieces = std::max<uint64_t>(1, total_bytes / piece);
  const DeviceMemory memory(num_pieces * piece);
  if (memory.data() == nullptr) return 0;
  ThreadPool pool(num_threads);
  /* Untouched pages would all be the system's one page of zeros. */
  pool.parallel_for(static_cast<int64_t>(num_pieces), 1, [&](int64_t begin, int64_t end, uint32_t) {
    std::memset(memory.data() + begin * static_cast<int64_t>(piece), 1, static_cast<uint64_t>(end - begin) * piece);
  });
  std::array<double, kPasses> rates{};
  std::atomic<uint64_t> result{0};
  uint64_t random = 1;
  pool.wake();
  for (double& rate : rates) {
    const uint64_t seed = random++;
    const auto from = Clock::now();
    /* One interval per thread, all with the same sequence of pieces. */
    pool.parallel_for(num_threads, 1, [&](int64_t begin, int64_t end, uint32_t) {
      for (int64_t part = begin; part < end; part++) {
        uint64_t state = seed, sum = 0;
        for (uint64_t i = 0; i < num_pieces; i++) {
          state = state * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX generator */
          sum ^= read_lines(memory.data() + (state >> 33) % num_pieces * piece + static_cast<uint64_t>(part) * share,
                            share);
        }
        result.fetch_xor(sum, std::memory_order_relaxed);
      }
    });
    rate = static_cast<double>(num_pieces * piece) / std::chrono::duration<double>(Clock::now() - from).count();
  }
  std::sort(rates.begin(), rates.end());
  return rates[kPasses / 2];
}

}  // namespace moe
