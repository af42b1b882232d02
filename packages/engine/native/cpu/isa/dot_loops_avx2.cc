#include <immintrin.h>

#include "dot_loops.h"

#define MOE_KEEP(value) __asm__ volatile("" : "+x"(value))

namespace moe {
namespace {

constexpr int kChains = 10;

/* Products of 8 bits are summed in pairs of 16 bits, those in pairs of 32: three instructions for 32 products. */
uint64_t int8(uint64_t rounds) {
  const __m256i input = _mm256_set1_epi8(5), ones = _mm256_set1_epi16(1);
  __m256i weights = _mm256_set1_epi8(3);
  return dot_loop<kChains, 32, __m256i>(rounds, [&](__m256i& sum) {
    MOE_KEEP(weights); /* or the products would be computed once */
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(weights, input), ones));
  });
}

uint64_t f32(uint64_t rounds) {
  const __m256 a = _mm256_set1_ps(1e-9f);
  return dot_loop<kChains, 8, __m256>(rounds, [&](__m256& sum) {
    sum = _mm256_fmadd_ps(a, a, sum);
    MOE_KEEP(sum);
  });
}

}  // namespace

DotLoops avx2_dot_loops() { return {int8, nullptr, f32}; }

}  // namespace moe
