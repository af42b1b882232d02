// Sixteen lanes as one value, in the compiler's own vector types: one 512-bit register, or as many smaller ones as the
// file that includes this is compiled for. Included inside an unnamed namespace: a function compiled for AVX-512 must
// never be the one that the linker keeps for everybody. For the same reason nothing here calls a function template of
// the standard library.
//
// Multiplications and additions are not contracted (-ffp-contract=off), so every instruction set computes the same bits
// here.

typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t IntLanes __attribute__((vector_size(64)));
typedef uint32_t BitLanes __attribute__((vector_size(64)));
typedef uint16_t HalfLanes __attribute__((vector_size(32)));
typedef int8_t ByteLanes __attribute__((vector_size(16)));

inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

inline BitLanes bits_of(Lanes value) { return reinterpret_cast<BitLanes>(value); }
inline Lanes lanes_of(BitLanes bits) { return reinterpret_cast<Lanes>(bits); }
inline Lanes splat(float value) { return Lanes{} + value; }

inline Lanes load_lanes(const float* from) {
  Lanes value;
  __builtin_memcpy(&value, from, 64);
  return value;
}

inline void store_lanes(Lanes value, float* to) { __builtin_memcpy(to, &value, 64); }

// The first `count` lanes, zeros behind them.
inline Lanes load_some(const float* from, int64_t count) {
  if (count >= 16) return load_lanes(from);
  alignas(64) float lanes[16] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = from[i];
  return load_lanes(lanes);
}

// As minps and maxps: the second operand where one is NaN.
inline Lanes min_of(Lanes a, Lanes b) { return a < b ? a : b; }
inline Lanes max_of(Lanes a, Lanes b) { return a > b ? a : b; }
inline float min_of(float a, float b) { return a < b ? a : b; }
inline float max_of(float a, float b) { return a > b ? a : b; }
inline Lanes magnitude_of(Lanes value) { return lanes_of(bits_of(value) & 0x7fffffffu); }

// Positive floats order as their bits do, and whole numbers have a maximum that needs no care about NaN.
inline float largest_of(BitLanes bits) {
  typedef uint32_t Eight __attribute__((vector_size(32)));
  typedef uint32_t Four __attribute__((vector_size(16)));
  Eight eight[2];
  __builtin_memcpy(eight, &bits, 64);
  eight[0] = eight[0] > eight[1] ? eight[0] : eight[1];
  Four four[2];
  __builtin_memcpy(four, &eight[0], 32);
  four[0] = four[0] > four[1] ? four[0] : four[1];
  uint32_t largest = four[0][0];
  for (int i = 1; i < 4; ++i) largest = four[0][i] > largest ? four[0][i] : largest;
  return float_of(largest);
}

inline int32_t sum_of(IntLanes value) {
  typedef int32_t Eight __attribute__((vector_size(32)));
  typedef int32_t Four __attribute__((vector_size(16)));
  Eight eight[2];
  __builtin_memcpy(eight, &value, 64);
  eight[0] += eight[1];
  Four four[2];
  __builtin_memcpy(four, &eight[0], 32);
  four[0] += four[1];
  return four[0][0] + four[0][1] + four[0][2] + four[0][3];
}

// bf16 to the nearest, ties to even, still as floats; NaN stays NaN.
inline Lanes round_bf16(Lanes value) {
  const BitLanes bits = bits_of(value);
  const BitLanes rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  const BitLanes nan = (bits & 0xffff0000u) | 0x400000u;
  return lanes_of((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

// Stores values that bf16 holds exactly.
inline void store_bf16(Lanes value, uint16_t* to) {
  const HalfLanes halves = __builtin_convertvector(bits_of(value) >> 16, HalfLanes);
  __builtin_memcpy(to, &halves, 32);
}

inline Lanes load_bf16(const uint16_t* from) {
  HalfLanes halves;
  __builtin_memcpy(&halves, from, 32);
  return lanes_of(__builtin_convertvector(halves, BitLanes) << 16);
}

// Nearest whole number, ties to even, for |value| < 2^22: beyond 1.5 * 2^23 a float has no fraction left.
inline Lanes round_even(Lanes value) { return (value + 12582912.0f) - 12582912.0f; }

// The nearest e4m3 value, ties to even, saturated at 448. Normal numbers keep three fraction bits; below 2^-6 the step
// is 2^-9, the unit in the last place at 1.5 * 2^14. NaN stays NaN.
inline Lanes round_e4m3(Lanes value) {
  const Lanes clamped = max_of(splat(-448.0f), min_of(splat(448.0f), value));
  const BitLanes bits = bits_of(clamped);
  const Lanes normal = lanes_of((bits + 0x7ffffu + ((bits >> 20) & 1u)) & 0xfff00000u);
  const Lanes small = (clamped + 24576.0f) - 24576.0f;
  return (bits & 0x7fffffffu) < 0x3c800000u ? small : normal;
}

inline float round_e4m3(float value) { return round_e4m3(splat(value))[0]; }

// Twice the nearest e2m1 value, ties to the even code, saturated: 0 1 2 3 4 6 8 12 and negatives.
inline IntLanes double_e2m1(Lanes value) {
  const Lanes magnitude = min_of(magnitude_of(value), splat(6.0f));
  const Lanes fine = round_even(magnitude * 2.0f);
  const Lanes middle = round_even(magnitude) * 2.0f;
  const Lanes coarse = round_even(magnitude * 0.5f) * 4.0f;
  const Lanes doubled = magnitude < splat(2.0f) ? fine : magnitude < splat(4.0f) ? middle : coarse;
  const IntLanes whole = __builtin_convertvector(doubled, IntLanes);
  return value < splat(0.0f) ? -whole : whole;
}

// exp by Cody and Waite's reduction (x = n ln 2 + r) and a polynomial of degree 7 on |r| <= ln(2)/2; within 2 units in
// the last place. Saturates: below -87.3 it answers about 1e-38, above 88.3 about 2e38. NaN stays NaN.
inline Lanes exp_of(Lanes x) {
  const Lanes clamped = max_of(splat(-87.3f), min_of(splat(88.3f), x));
  const Lanes n = round_even(clamped * 1.44269504f);
  const Lanes r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  Lanes p = splat(1.0f / 5040.0f);
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  return p * lanes_of(reinterpret_cast<BitLanes>(__builtin_convertvector(n, IntLanes) + 127) << 23);
}

inline Lanes sigmoid_of(Lanes x) { return 1.0f / (1.0f + exp_of(-x)); }
