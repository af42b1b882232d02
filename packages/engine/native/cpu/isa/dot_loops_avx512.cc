#include <immintrin.h>

#include "dot_loops.h"

#define MOE_KEEP(value) __asm__ volatile("" : "+v"(value))

namespace moe {
namespace {

constexpr int kChains = 12;

uint64_t int8(uint64_t rounds) {
  const __m512i weights = _mm512_set1_epi8(3), input = _mm512_set1_epi8(5);
  return dot_loop<kChains, 64, __m512i>(rounds, [&](__m512i& sum) {
    sum = _mm512_dpbusd_epi32(sum, weights, input);
    MOE_KEEP(sum);
  });
}

uint64_t bf16(uint64_t rounds) {
  const auto ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  return dot_loop<kChains, 32, __m512>(rounds, [&](__m512& sum) {
    sum = _mm512_dpbf16_ps(sum, ones, ones);
    MOE_KEEP(sum);
  });
}

uint64_t f32(uint64_t rounds) {
  const __m512 a = _mm512_set1_ps(1e-9f);
  return dot_loop<kChains, 16, __m512>(rounds, [&](__m512& sum) {
    sum = _mm512_fmadd_ps(a, a, sum);
    MOE_KEEP(sum);
  });
}

}  // namespace

DotLoops avx512_dot_loops() { return {int8, bf16, f32}; }

}  // namespace moe
