/*
 * Operators on single rows, written on the sixteen floats of a vec_*.h that was included before. Included once per
 * instruction set, with MOE_ISA naming its namespace; no function of the standard library that could be emitted out of
 * line, so that code for one instruction set is never linked into another's path.
 */
namespace moe::MOE_ISA {

/*
 * exp(x) = 2^n * exp(r) with n = round(x / ln 2) and |r| <= ln(2) / 2, where eight terms of the power series leave less
 * than 1e-8. ln 2 in two parts (Cody and Waite 1980): n * kLn2High is exact. Below the smallest normal number the
 * result is 0; above 88.37 it stays at exp(88.37); NaN stays NaN.
 */
static inline F exp16(F x) {
  constexpr float kLowest = -87.33654f, kHighest = 88.37f;
  constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  constexpr float kRound = 0x1.8p23f; /* adding it leaves no bits for fractions */
  const F clamped = min(set1(kHighest), max(set1(kLowest), x));
  const F n = sub(fma(clamped, set1(0x1.715476p0f), set1(kRound)), set1(kRound));
  const F r = fma(n, set1(-kLn2Low), fma(n, set1(-kLn2High), clamped));
  F p = set1(1.0f / 5040);
  p = fma(p, r, set1(1.0f / 720));
  p = fma(p, r, set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1));
  p = fma(p, r, set1(1));
  return zero_below(mul(p, pow2(n)), x, kLowest);
}

static inline float exp1(float x) {
  float lanes[16];
  store(lanes, exp16(set1(x)));
  return lanes[0];
}

static inline F sigmoid16(F x) { return div(set1(1), add(set1(1), exp16(sub(zero(), x)))); }

static void rms_norm(const float* input, const float* weight, float* output, int64_t width, float eps) {
  F squares[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 64 <= width; i += 64) {
    for (int k = 0; k < 4; k++) {
      const F x = load(input + i + 16 * k);
      squares[k] = fma(x, x, squares[k]);
    }
  }
  for (; i < width; i += 16) {
    const F x = load_first(input + i, width - i, 0);
    squares[0] = fma(x, x, squares[0]);
  }
  const float sum = reduce_add(add(add(squares[0], squares[1]), add(squares[2], squares[3])));
  const F factor = set1(1.0f / __builtin_sqrtf(sum / static_cast<float>(width) + eps));
  for (i = 0; i < width; i += 16) {
    const F x = load_first(input + i, width - i, 0), w = load_first(weight + i, width - i, 0);
    store_first(output + i, mul(mul(x, factor), w), width - i);
  }
}

static void rope(float* head, const float* table, int64_t rotary_dim, bool interleaved) {
  const int64_t half = rotary_dim / 2;
  const float* cosines = table;
  const float* sines = table + half;
  if (interleaved) {
    for (int64_t i = 0; i < half; i++) {
      const float x = head[2 * i], y = head[2 * i + 1];
      head[2 * i] = x * cosines[i] - y * sines[i];
      head[2 * i + 1] = y * cosines[i] + x * sines[i];
    }
    return;
  }
  for (int64_t i = 0; i < half; i += 16) {
    const int64_t n = half - i;
    const F x = load_first(head + i, n, 0), y = load_first(head + half + i, n, 0);
    const F c = load_first(cosines + i, n, 0), s = load_first(sines + i, n, 0);
    store_first(head + i, sub(mul(x, c), mul(y, s)), n);
    store_first(head + half + i, add(mul(y, c), mul(x, s)), n);
  }
}

static void bf16_to_f32(const uint16_t* input, float* output, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(output + i, load_bf16(reinterpret_cast<const uint8_t*>(input + i)));
  for (; i < count; i++) output[i] = __builtin_bit_cast(float, static_cast<uint32_t>(input[i]) << 16);
}

/* Plain loops over bit patterns, in the form that compilers vectorize. */
static void f32_to_bf16(const float* input, uint16_t* output, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    const auto bits = __builtin_bit_cast(uint32_t, input[i]);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t quiet = (bits >> 16) | 0x40u;
    output[i] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
  }
}

static void f32_to_f8(const float* input, uint8_t* output, int64_t count, float scale) {
  for (int64_t i = 0; i < count; i++) {
    const auto bits = __builtin_bit_cast(uint32_t, input[i] / scale);
    const uint32_t sign = (bits >> 24) & 0x80u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    /* From 2^-6 on: three mantissa bits stay, exponent bias 127 becomes 7. */
    const uint32_t normal = ((magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20) - (120u << 3);
    /* Below: multiples of 2^-9, which is what adding 2^14 leaves. */
    const auto subnormal = __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, magnitude) + 0x1p14f) - 0x46800000u;
    uint32_t code = magnitude < 0x3c800000u ? subnormal : normal;
    code = magnitude >= 0x43e00000u ? 0x7eu : code; /* 448 */
    code = magnitude > 0x7f800000u ? 0x7fu : code;
    output[i] = static_cast<uint8_t>(code | sign);
  }
}

static void gated_activation(const float* gate, const float* up, float* output, int64_t count,
                             GatedActivation activation) {
  const bool silu = activation.type == GatedActivation::Type::kSilu;
  const F alpha = set1(activation.alpha), limit = set1(activation.limit), lowest = set1(-activation.limit);
  for (int64_t i = 0; i < count; i += 16) {
    const F g = load_first(gate + i, count - i, 0), u = load_first(up + i, count - i, 0);
    if (silu) {
      store_first(output + i, mul(mul(g, sigmoid16(g)), u), count - i);
    } else {
      const F clamped_gate = min(limit, g), clamped_up = min(limit, max(lowest, u));
      const F gated = mul(clamped_gate, sigmoid16(mul(alpha, clamped_gate)));
      store_first(output + i, mul(add(clamped_up, set1(1)), gated), count - i);
    }
  }
}

static float softmax_terms(float* x, int64_t count) {
  F largest = set1(-__builtin_inff());
  for (int64_t i = 0; i < count; i += 16) largest = max(largest, load_first(x + i, count - i, -__builtin_inff()));
  const F maximum = set1(reduce_max(largest));
  F sum = zero();
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t n = count - i;
    const F e = exp16(sub(load_first(x + i, n, -__builtin_inff()), maximum));
    sum = add(sum, keep(e, 0, n < 16 ? static_cast<int>(n) : 16, 0));
    store_first(x + i, e, n);
  }
  return reduce_add(sum);
}

static void sigmoid(float* x, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) store_first(x + i, sigmoid16(load_first(x + i, count - i, 0)), count - i);
}

static void scale_row(const float* input, float factor, float* output, int64_t count) {
  for (int64_t i = 0; i < count; i += 16)
    store_first(output + i, mul(load_first(input + i, count - i, 0), set1(factor)), count - i);
}

static float chunk_max(const float* x, int64_t count, float* maxima) {
  const float lowest = -__builtin_inff();
  F largest = set1(lowest);
  for (int64_t chunk = 0; chunk * kChunk < count; chunk++) {
    F m = set1(lowest);
    const int64_t end = (chunk + 1) * kChunk < count ? (chunk + 1) * kChunk : count;
    /* The value that may be NaN stands first: max() answers with the second then. */
    for (int64_t i = chunk * kChunk; i < end; i += 16) m = max(load_first(x + i, end - i, lowest), m);
    maxima[chunk] = reduce_max(m);
    largest = max(m, largest);
  }
  return reduce_max(largest);
}

/* exp((x - maximum) / temperature); a division by 1 changes nothing and is left out. */
static inline F exp_term16(F x, F maximum, F temperature, bool divide) {
  const F difference = sub(x, maximum);
  return exp16(divide ? div(difference, temperature) : difference);
}

static void exp_terms(const float* x, float* output, int64_t count, float maximum, float temperature) {
  const F m = set1(maximum), t = set1(temperature);
  for (int64_t i = 0; i < count; i += 16) {
    store_first(output + i, exp_term16(load_first(x + i, count - i, 0), m, t, temperature != 1), count - i);
  }
}

static void chunk_exp_sums(const float* x, int64_t count, float maximum, float temperature, float* sums) {
  const float lowest = -__builtin_inff();
  const F m = set1(maximum), t = set1(temperature);
  for (int64_t chunk = 0; chunk * kChunk < count; chunk++) {
    const int64_t end = (chunk + 1) * kChunk < count ? (chunk + 1) * kChunk : count;
    F sum = zero();
    for (int64_t i = chunk * kChunk; i < end; i += 16) {
      sum = add(sum, exp_term16(load_first(x + i, end - i, lowest), m, t, temperature != 1));
    }
    sums[chunk] = reduce_add(sum);
  }
}

static int64_t count_greater(const float* x, int64_t count, float value) {
  int64_t greater = 0;
  for (int64_t i = 0; i < count; i += 16)
    greater += count_greater16(load_first(x + i, count - i, -__builtin_inff()), set1(value));
  return greater;
}

}  // namespace moe::MOE_ISA
