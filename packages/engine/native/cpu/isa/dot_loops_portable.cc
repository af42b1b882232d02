#include <array>

#include "dot_loops.h"

namespace moe {
namespace {

/* Enough for the compiler to fill the registers of any baseline with sums. */
constexpr int kSums = 48;

uint64_t f32(uint64_t rounds) {
  std::array<float, kSums> sums{};
  /* Unknown to the compiler: a round cannot be left out or merged with the next. */
  volatile float factor = 0.5f, term = 1.0f;
  const float a = factor, b = term;
  for (uint64_t round = 0; round < rounds; round++) {
    for (float& sum : sums) sum = sum * a + b;
  }
  volatile float sink = 0;
  for (const float sum : sums) sink = sink + sum;
  return rounds * kSums * 2;
}

}  // namespace

DotLoops portable_dot_loops() { return {nullptr, nullptr, f32}; }

}  // namespace moe
