#ifndef MOE_CPU_ISA_VEC_AVX2_H_
#define MOE_CPU_ISA_VEC_AVX2_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define MOE_ISA avx2

/* Sixteen floats in two registers. What each function means is said in vec_portable.h. */
namespace moe::avx2 {

struct F {
  __m256 lo, hi;
};

/* 8 of the 16 registers accumulate; the rest holds operands. */
constexpr int kTile = 4;
constexpr int kMaxTileRows = 4;

static inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, F x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
static inline F load_first(const float* p, int64_t n, float other) {
  if (n >= 16) return load(p);
  float lanes[16];
  store(lanes, set1(other));
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
  return load(lanes);
}
static inline void store_first(float* p, F x, int64_t n) {
  if (n >= 16) return store(p, x);
  float lanes[16];
  store(lanes, x);
  std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
}
static inline F add(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
static inline F sub(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
static inline F mul(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
static inline F div(F a, F b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
static inline F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
static inline F max(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
static inline F min(F a, F b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }

static inline __m256 lanes_between(int begin, int end) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i after = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(begin - 1));
  return _mm256_castsi256_ps(_mm256_and_si256(after, _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane)));
}
static inline F keep(F x, int begin, int end, float other) {
  const __m256 fill = _mm256_set1_ps(other);
  return {_mm256_blendv_ps(fill, x.lo, lanes_between(begin, end)),
          _mm256_blendv_ps(fill, x.hi, lanes_between(begin - 8, end - 8))};
}
static inline F zero_below(F value, F x, float limit) {
  const __m256 edge = _mm256_set1_ps(limit);
  return {_mm256_and_ps(_mm256_cmp_ps(x.lo, edge, _CMP_NLT_UQ), value.lo),
          _mm256_and_ps(_mm256_cmp_ps(x.hi, edge, _CMP_NLT_UQ), value.hi)};
}
static inline __m256 pow2_8(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static inline F pow2(F n) { return {pow2_8(n.lo), pow2_8(n.hi)}; }
static inline int count_greater16(F x, F y) {
  const int lo = _mm256_movemask_ps(_mm256_cmp_ps(x.lo, y.lo, _CMP_GT_OQ));
  return __builtin_popcount(static_cast<unsigned>(lo | _mm256_movemask_ps(_mm256_cmp_ps(x.hi, y.hi, _CMP_GT_OQ)) << 8));
}

static inline __m256 bf16_8(const uint8_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
static inline F load_bf16(const uint8_t* p) { return {bf16_8(p), bf16_8(p + 16)}; }
static inline void load_bf16_pairs(const uint8_t* p, F* even, F* odd) {
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  *even = {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
  *odd = {_mm256_castsi256_ps(_mm256_and_si256(lo, upper)), _mm256_castsi256_ps(_mm256_and_si256(hi, upper))};
}
/* An e4m3 code in the upper byte of each word becomes the half float with its bits. */
static inline F f8_words(__m256i x) {
  const __m256i half = _mm256_and_si256(_mm256_srai_epi16(x, 1), _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
  const __m256i all = _mm256_set1_epi16(0x3f80);
  const __m256i nan =
      _mm256_and_si256(_mm256_cmpeq_epi16(_mm256_and_si256(half, all), all), _mm256_set1_epi16(0x7c00));
  const __m256i bits = _mm256_or_si256(half, nan);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(bits)), _mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1))};
}
static inline void load_f8_pairs(const uint8_t* p, F* even, F* odd) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  *even = f8_words(_mm256_slli_epi16(x, 8));
  *odd = f8_words(x);
}

static inline __m128 fold4(F x) {
  const __m256 a = _mm256_add_ps(x.lo, x.hi);
  return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
}
static inline float reduce_add(F x) {
  const __m128 b = fold4(x);
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
static inline float reduce_max(F x) {
  const __m256 a = _mm256_max_ps(x.lo, x.hi);
  const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}
static inline void reduce_tile(const F* a, float* sums) {
  const __m128 x = fold4(a[0]), y = fold4(a[1]), z = fold4(a[2]), w = fold4(a[3]);
  const __m128 xy = _mm_add_ps(_mm_movelh_ps(x, y), _mm_movehl_ps(y, x));
  const __m128 zw = _mm_add_ps(_mm_movelh_ps(z, w), _mm_movehl_ps(w, z));
  _mm_storeu_ps(sums, _mm_add_ps(_mm_shuffle_ps(xy, zw, 0x88), _mm_shuffle_ps(xy, zw, 0xdd)));
}

static inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
static inline void prefetch_l2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace moe::avx2

#endif  // MOE_CPU_ISA_VEC_AVX2_H_
