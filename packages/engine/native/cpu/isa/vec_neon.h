#ifndef MOE_CPU_ISA_VEC_NEON_H_
#define MOE_CPU_ISA_VEC_NEON_H_

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#define MOE_ISA neon

/* Sixteen floats in four registers, base architecture. What each function means is said in vec_portable.h. */
namespace moe::neon {

struct F {
  float32x4_t part[4];
};

/* 16 of the 32 registers accumulate; the rest holds operands. */
constexpr int kTile = 4;
constexpr int kMaxTileRows = 4;

#define MOE_PARTWISE(expression)                        \
  F r;                                                  \
  for (int i = 0; i < 4; i++) r.part[i] = (expression); \
  return r

static inline F set1(float x) { MOE_PARTWISE(vdupq_n_f32(x)); }
static inline F zero() { return set1(0); }
static inline F load(const float* p) { MOE_PARTWISE(vld1q_f32(p + 4 * i)); }
static inline void store(float* p, F x) {
  for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.part[i]);
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

/* fmax and fmin answer with NaN where either is one; a comparison does what is asked. */
static inline float32x4_t max4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline float32x4_t min4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }

static inline F add(F a, F b) { MOE_PARTWISE(vaddq_f32(a.part[i], b.part[i])); }
static inline F sub(F a, F b) { MOE_PARTWISE(vsubq_f32(a.part[i], b.part[i])); }
static inline F mul(F a, F b) { MOE_PARTWISE(vmulq_f32(a.part[i], b.part[i])); }
static inline F div(F a, F b) { MOE_PARTWISE(vdivq_f32(a.part[i], b.part[i])); }
static inline F fma(F a, F b, F c) { MOE_PARTWISE(vfmaq_f32(c.part[i], a.part[i], b.part[i])); }
static inline F max(F a, F b) { MOE_PARTWISE(max4(a.part[i], b.part[i])); }
static inline F min(F a, F b) { MOE_PARTWISE(min4(a.part[i], b.part[i])); }

static inline uint32x4_t lanes_between(int begin, int end) {
  const int32_t numbers[4] = {0, 1, 2, 3};
  const int32x4_t lane = vld1q_s32(numbers);
  return vandq_u32(vcgeq_s32(lane, vdupq_n_s32(begin)), vcltq_s32(lane, vdupq_n_s32(end)));
}
static inline F keep(F x, int begin, int end, float other) {
  MOE_PARTWISE(vbslq_f32(lanes_between(begin - 4 * i, end - 4 * i), x.part[i], vdupq_n_f32(other)));
}
static inline float32x4_t zero_below4(float32x4_t value, float32x4_t x, float limit) {
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), vcltq_f32(x, vdupq_n_f32(limit))));
}
static inline F zero_below(F value, F x, float limit) { MOE_PARTWISE(zero_below4(value.part[i], x.part[i], limit)); }
static inline float32x4_t pow2_4(float32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
static inline F pow2(F n) { MOE_PARTWISE(pow2_4(n.part[i])); }

static inline int count_greater16(F x, F y) {
  uint32x4_t count = vdupq_n_u32(0);
  for (int i = 0; i < 4; i++) count = vsubq_u32(count, vcgtq_f32(x.part[i], y.part[i]));
  return static_cast<int>(vaddvq_u32(count));
}

static inline float32x4_t bf16_4(const uint8_t* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}
static inline F load_bf16(const uint8_t* p) { MOE_PARTWISE(bf16_4(p + 8 * i)); }
static inline void load_bf16_pairs(const uint8_t* p, F* even, F* odd) {
  for (int i = 0; i < 4; i++) {
    const uint32x4_t pairs = vreinterpretq_u32_u8(vld1q_u8(p + 16 * i));
    even->part[i] = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
    odd->part[i] = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
  }
}
/*
 * An e4m3 code in the upper byte of each word becomes the half float with its bits. A shift that extends the sign
 * leaves it in bits 15 and 14; half precision has it in 15 alone.
 */
static inline void f8_words(uint16x8_t x, float32x4_t* low, float32x4_t* high) {
  const uint16x8_t shifted = vreinterpretq_u16_s16(vshrq_n_s16(vreinterpretq_s16_u16(x), 1));
  const uint16x8_t half = vandq_u16(shifted, vdupq_n_u16(0xbf80));
  const uint16x8_t all = vdupq_n_u16(0x3f80);
  const uint16x8_t nan = vandq_u16(vceqq_u16(vandq_u16(half, all), all), vdupq_n_u16(0x7c00));
  const float16x8_t bits = vreinterpretq_f16_u16(vorrq_u16(half, nan));
  *low = vcvt_f32_f16(vget_low_f16(bits));
  *high = vcvt_high_f32_f16(bits);
}
static inline void load_f8_pairs(const uint8_t* p, F* even, F* odd) {
  for (int i = 0; i < 2; i++) {
    const uint16x8_t x = vreinterpretq_u16_u8(vld1q_u8(p + 16 * i));
    f8_words(vshlq_n_u16(x, 8), &even->part[2 * i], &even->part[2 * i + 1]);
    f8_words(x, &odd->part[2 * i], &odd->part[2 * i + 1]);
  }
}

static inline float32x4_t fold4(F x) {
  return vaddq_f32(vaddq_f32(x.part[0], x.part[2]), vaddq_f32(x.part[1], x.part[3]));
}
static inline float reduce_add(F x) {
  const float32x4_t b = fold4(x);
  return vpadds_f32(vadd_f32(vget_low_f32(b), vget_high_f32(b)));
}
static inline float reduce_max(F x) {
  const float32x4_t b = max4(max4(x.part[0], x.part[2]), max4(x.part[1], x.part[3]));
  const float32x4_t c = max4(b, vextq_f32(b, b, 2));
  return vgetq_lane_f32(max4(c, vextq_f32(c, c, 1)), 0);
}
/* Lanes 0 + 2 and 1 + 3 of two folded accumulators. */
static inline float32x4_t fold2(float32x4_t x, float32x4_t y) {
  const float64x2_t a = vreinterpretq_f64_f32(x), b = vreinterpretq_f64_f32(y);
  return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b)));
}
static inline void reduce_tile(const F* a, float* sums) {
  vst1q_f32(sums, vpaddq_f32(fold2(fold4(a[0]), fold4(a[1])), fold2(fold4(a[2]), fold4(a[3]))));
}

#undef MOE_PARTWISE

static inline void prefetch(const void* p) { __builtin_prefetch(p); }
static inline void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace moe::neon

#endif  // MOE_CPU_ISA_VEC_NEON_H_
