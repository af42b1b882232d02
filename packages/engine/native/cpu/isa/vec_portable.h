#ifndef MOE_CPU_ISA_VEC_PORTABLE_H_
#define MOE_CPU_ISA_VEC_PORTABLE_H_

#include <cstdint>
#include <cstring>

#define MOE_ISA portable

/*
 * Sixteen floats as an array: the meaning of the functions that the other vec_*.h write in intrinsics. Sums over lanes
 * take the same order everywhere: ((l0 + l8) + (l4 + l12)), and so on for l1, l2, l3, then (0 + 2) + (1 + 3).
 */
namespace moe::portable {

struct F {
  float lane[16];
};

/* Accumulators of one block of products, and how many rows it may have. */
constexpr int kTile = 4;
constexpr int kMaxTileRows = 4;

static inline F set1(float x) {
  F r;
  for (float& lane : r.lane) lane = x;
  return r;
}
static inline F zero() { return set1(0); }
static inline F load(const float* p) {
  F r;
  std::memcpy(r.lane, p, sizeof r.lane);
  return r;
}
static inline void store(float* p, F x) { std::memcpy(p, x.lane, sizeof x.lane); }
/* Lanes from n on are `other`; memory beyond n is not touched. */
static inline F load_first(const float* p, int64_t n, float other) {
  F r = set1(other);
  std::memcpy(r.lane, p, static_cast<size_t>(n < 16 ? n : 16) * sizeof(float));
  return r;
}
static inline void store_first(float* p, F x, int64_t n) {
  std::memcpy(p, x.lane, static_cast<size_t>(n < 16 ? n : 16) * sizeof(float));
}

#define MOE_LANEWISE(expression)                         \
  F r;                                                   \
  for (int i = 0; i < 16; i++) r.lane[i] = (expression); \
  return r

static inline F add(F a, F b) { MOE_LANEWISE(a.lane[i] + b.lane[i]); }
static inline F sub(F a, F b) { MOE_LANEWISE(a.lane[i] - b.lane[i]); }
static inline F mul(F a, F b) { MOE_LANEWISE(a.lane[i] * b.lane[i]); }
static inline F div(F a, F b) { MOE_LANEWISE(a.lane[i] / b.lane[i]); }
/* a * b + c; fused where the instruction exists, rounded twice here. */
static inline F fma(F a, F b, F c) { MOE_LANEWISE(a.lane[i] * b.lane[i] + c.lane[i]); }
/* Where either is NaN: b. */
static inline F max(F a, F b) { MOE_LANEWISE(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]); }
static inline F min(F a, F b) { MOE_LANEWISE(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]); }
/* Lanes in [begin, end) stay, the others become `other`. */
static inline F keep(F x, int begin, int end, float other) { MOE_LANEWISE(i >= begin && i < end ? x.lane[i] : other); }
/* x < limit ? 0 : value; NaN in x keeps the value. */
static inline F zero_below(F value, F x, float limit) { MOE_LANEWISE(x.lane[i] < limit ? 0.0f : value.lane[i]); }
static inline float pow2_1(float n) { return __builtin_bit_cast(float, (static_cast<int32_t>(n) + 127) << 23); }
/* 2^n for whole n in [-126, 127]; NaN gives anything. */
static inline F pow2(F n) { MOE_LANEWISE(n.lane[i] == n.lane[i] ? pow2_1(n.lane[i]) : 0.0f); }

#undef MOE_LANEWISE

static inline int count_greater16(F x, F y) {
  int count = 0;
  for (int i = 0; i < 16; i++) count += x.lane[i] > y.lane[i];
  return count;
}

static inline F load_bf16(const uint8_t* p) {
  uint16_t half[16];
  uint32_t bits[16];
  std::memcpy(half, p, sizeof half);
  for (int i = 0; i < 16; i++) bits[i] = static_cast<uint32_t>(half[i]) << 16;
  F r;
  std::memcpy(r.lane, bits, sizeof bits);
  return r;
}

/* 32 bf16 in pairs: the first and the second of each. */
static inline void load_bf16_pairs(const uint8_t* p, F* even, F* odd) {
  uint32_t pairs[16], low[16], high[16];
  std::memcpy(pairs, p, sizeof pairs);
  for (int i = 0; i < 16; i++) {
    low[i] = pairs[i] << 16;
    high[i] = pairs[i] & 0xffff0000u;
  }
  std::memcpy(even->lane, low, sizeof low);
  std::memcpy(odd->lane, high, sizeof high);
}

/*
 * e4m3 over kF8Unit: the bits of a half float with the same exponent field, whose bias is larger by 8.
 * Here through the f32 format: subnormals by their count, the rest by moving exponent and mantissa.
 */
static inline float f8(uint8_t code) {
  const uint32_t magnitude = code & 0x7fu;
  const uint32_t bits = magnitude == 0x7f ? 0x7fc00000u : (magnitude << 20) + ((127u - 7u - 8u) << 23);
  const float x = magnitude < 8 ? static_cast<float>(magnitude) * 0x1p-17f : __builtin_bit_cast(float, bits);
  return code & 0x80u ? -x : x;
}
/* 32 e4m3 in pairs. */
static inline void load_f8_pairs(const uint8_t* p, F* even, F* odd) {
  for (int i = 0; i < 16; i++) {
    even->lane[i] = f8(p[2 * i]);
    odd->lane[i] = f8(p[2 * i + 1]);
  }
}

static inline float reduce_add(F x) {
  float m[4];
  for (int i = 0; i < 4; i++) m[i] = (x.lane[i] + x.lane[i + 8]) + (x.lane[i + 4] + x.lane[i + 12]);
  return (m[0] + m[2]) + (m[1] + m[3]);
}
static inline float reduce_max(F x) {
  float m = x.lane[0];
  for (int i = 1; i < 16; i++) m = m > x.lane[i] ? m : x.lane[i];
  return m;
}
/* sums[i] = reduce_add(a[i]) for kTile accumulators. */
static inline void reduce_tile(const F* a, float* sums) {
  for (int i = 0; i < kTile; i++) sums[i] = reduce_add(a[i]);
}

static inline void prefetch(const void* p) { __builtin_prefetch(p); }
static inline void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace moe::portable

#endif  // MOE_CPU_ISA_VEC_PORTABLE_H_
