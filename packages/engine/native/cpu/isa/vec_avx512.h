#ifndef MOE_CPU_ISA_VEC_AVX512_H_
#define MOE_CPU_ISA_VEC_AVX512_H_

#include <immintrin.h>

#include <cstdint>

/* avx512_bf16 where the processor has more; the same text, compiled for it. */
#ifndef MOE_ISA
#define MOE_ISA avx512
#endif

/* Sixteen floats in one register. What each function means is said in vec_portable.h. */
namespace moe::MOE_ISA {

using F = __m512;

/* 16 accumulators of the 32 registers; the rest holds operands. */
constexpr int kTile = 16;
constexpr int kMaxTileRows = 8;

static inline __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }

static inline F zero() { return _mm512_setzero_ps(); }
static inline F set1(float x) { return _mm512_set1_ps(x); }
static inline F load(const float* p) { return _mm512_loadu_ps(p); }
static inline F load_first(const float* p, int64_t n, float other) {
  return _mm512_mask_loadu_ps(_mm512_set1_ps(other), first(n), p);
}
static inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
static inline void store_first(float* p, F x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }
static inline F add(F a, F b) { return _mm512_add_ps(a, b); }
static inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
static inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
static inline F div(F a, F b) { return _mm512_div_ps(a, b); }
static inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
static inline F max(F a, F b) { return _mm512_max_ps(a, b); }
static inline F min(F a, F b) { return _mm512_min_ps(a, b); }

static inline F keep(F x, int begin, int end, float other) {
  const __mmask16 mask = first(end < 0 ? 0 : end) & static_cast<__mmask16>(~first(begin < 0 ? 0 : begin));
  return _mm512_mask_mov_ps(_mm512_set1_ps(other), mask, x);
}
static inline F zero_below(F value, F x, float limit) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_NLT_UQ), value);
}
static inline F pow2(F n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
static inline int count_greater16(F x, F y) { return __builtin_popcount(_mm512_cmp_ps_mask(x, y, _CMP_GT_OQ)); }

static inline F load_bf16(const uint8_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
static inline void load_bf16_pairs(const uint8_t* p, F* even, F* odd) {
  const __m512i pairs = _mm512_loadu_si512(p);
  *even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  *odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
/* An e4m3 code in the upper byte of each word becomes the half float with its bits. */
static inline F f8_words(__m256i x) {
  const __m256i half = _mm256_and_si256(_mm256_srai_epi16(x, 1), _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
  const __m256i all = _mm256_set1_epi16(0x3f80);
  const __mmask16 nan = _mm256_cmpeq_epi16_mask(_mm256_and_si256(half, all), all);
  return _mm512_cvtph_ps(_mm256_mask_mov_epi16(half, nan, _mm256_or_si256(half, _mm256_set1_epi16(0x7c00))));
}
static inline void load_f8_pairs(const uint8_t* p, F* even, F* odd) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  *even = f8_words(_mm256_slli_epi16(x, 8));
  *odd = f8_words(x);
}

static inline float reduce_add(F x) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
static inline float reduce_max(F x) { return _mm512_reduce_max_ps(x); }

/* A transpose that adds: each of the four stages halves the number of registers and of addends. */
static inline void reduce_tile(const F* a, float* sums) {
  F t[8], u[4], v[2];
  for (int i = 0; i < 8; i++) {
    t[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 8], 0x44), _mm512_shuffle_f32x4(a[i], a[i + 8], 0xee));
  }
  for (int i = 0; i < 4; i++) {
    u[i] = _mm512_add_ps(_mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd));
  }
  for (int i = 0; i < 2; i++) {
    const __m512d x = _mm512_castps_pd(u[i]), y = _mm512_castps_pd(u[i + 2]);
    v[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  const F w = _mm512_add_ps(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xdd));
  /* Lane 4g + j of w belongs to accumulator {0, 8, 4, 12}[g] + {0, 2, 1, 3}[j]. */
  const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
  _mm512_storeu_ps(sums, _mm512_permutexvar_ps(order, w));
}

static inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
static inline void prefetch_l2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace moe::MOE_ISA

#endif  // MOE_CPU_ISA_VEC_AVX512_H_
