#include <arm_neon.h>

#include "dot_loops.h"

#define MOE_KEEP(value) __asm__ volatile("" : "+w"(value))

namespace moe {
namespace {

constexpr int kChains = 12;

uint64_t int8(uint64_t rounds) {
  const int8x16_t weights = vdupq_n_s8(3), input = vdupq_n_s8(5);
  return dot_loop<kChains, 16, int32x4_t>(rounds, [&](int32x4_t& sum) {
    sum = vdotq_s32(sum, weights, input);
    MOE_KEEP(sum);
  });
}

}  // namespace

DotLoops neon_dotprod_dot_loops() { return {int8, nullptr, neon_dot_loops().f32}; }

}  // namespace moe
