#include <arm_neon.h>

#include "dot_loops.h"

#define MOE_KEEP(value) __asm__ volatile("" : "+w"(value))

namespace moe {
namespace {

constexpr int kChains = 12;

/* Without dotprod: products of 16 bits, two of them added, then pairs into sums of 32 bits. */
uint64_t int8(uint64_t rounds) {
  const int8x16_t input = vdupq_n_s8(5);
  int8x16_t weights = vdupq_n_s8(3);
  return dot_loop<kChains, 16, int32x4_t>(rounds, [&](int32x4_t& sum) {
    MOE_KEEP(weights); /* or the products would be computed once */
    const int16x8_t low = vmull_s8(vget_low_s8(weights), vget_low_s8(input));
    sum = vpadalq_s16(sum, vmlal_s8(low, vget_high_s8(weights), vget_high_s8(input)));
  });
}

uint64_t f32(uint64_t rounds) {
  const float32x4_t a = vdupq_n_f32(1e-9f);
  return dot_loop<kChains, 4, float32x4_t>(rounds, [&](float32x4_t& sum) {
    sum = vfmaq_f32(sum, a, a);
    MOE_KEEP(sum);
  });
}

}  // namespace

DotLoops neon_dot_loops() { return {int8, nullptr, f32}; }

}  // namespace moe
