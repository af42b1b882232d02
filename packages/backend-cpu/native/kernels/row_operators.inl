// Operators on rows and on the 16 lanes of a tile, in plain loops that the compiler vectorizes for the instruction set of the file
// that includes this one. Included inside an unnamed namespace: a function compiled for AVX-512 must never be the one that
// the linker keeps for everybody. For the same reason nothing here calls a function template of the standard library.
//
// Multiplications and additions are not contracted (-ffp-contract=off), so every instruction set computes the same bits here.

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

inline float min_of(float a, float b) { return a < b ? a : b; }
inline float max_of(float a, float b) { return a > b ? a : b; }

// Nearest, ties to even; NaN stays NaN.
inline uint16_t bf16_of(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

inline float float_of_bf16(uint16_t value) { return float_of(static_cast<uint32_t>(value) << 16); }

// Nearest whole number, ties to even, for |value| < 2^22: beyond 1.5 * 2^23 a float has no fraction left.
inline float round_even(float value) { return (value + 12582912.0f) - 12582912.0f; }

// The nearest e4m3 value, ties to even, of a value within +-448. Normal numbers keep three fraction bits; below 2^-6 the step is
// 2^-9, the unit in the last place at 1.5 * 2^14.
inline float round_e4m3(float value) {
  const float clamped = max_of(min_of(value, 448.0f), -448.0f);
  const uint32_t bits = bits_of(clamped);
  const float normal = float_of((bits + 0x7ffffu + ((bits >> 20) & 1u)) & 0xfff00000u);
  const float small = (clamped + 24576.0f) - 24576.0f;
  return (bits & 0x7fffffffu) < 0x3c800000u ? small : normal;
}

// Twice the nearest e2m1 value, ties to the even code: 0 1 2 3 4 6 8 12 and negatives.
inline float double_e2m1(float value) {
  const float magnitude = min_of(float_of(bits_of(value) & 0x7fffffffu), 6.0f);
  const float fine = round_even(magnitude * 2.0f);
  const float middle = round_even(magnitude) * 2.0f;
  const float coarse = round_even(magnitude * 0.5f) * 4.0f;
  const float result = magnitude < 2.0f ? fine : magnitude < 4.0f ? middle : coarse;
  return float_of(bits_of(result) | (bits_of(value) & 0x80000000u));
}

// exp by Cody and Waite's reduction (x = n ln 2 + r) and a polynomial of degree 7 on |r| <= ln(2)/2; within 2 units in the last
// place. Saturates: below -87.3 it answers about 1e-38, above 88.3 about 2e38.
inline float exp_of(float x) {
  const float clamped = max_of(min_of(x, 88.3f), -87.3f);
  const float n = round_even(clamped * 1.44269504f);
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  return p * float_of(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
}

inline float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(-x)); }

template <typename T>
inline void store_values(const float* values, int64_t count, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (sizeof(T) == 2) {
      out[i] = bf16_of(values[i]);
    } else {
      out[i] = values[i];
    }
  }
}

template <typename T>
inline float value_of(T value) {
  if constexpr (sizeof(T) == 2) {
    return float_of_bf16(value);
  } else {
    return value;
  }
}

// e4m3 values of x / scale, as floats of the record's type.
template <typename T>
inline void store_e4m3(const float* x, int64_t count, float scale, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = round_e4m3(x[i] / scale);
    if constexpr (sizeof(T) == 2) {
      out[i] = static_cast<uint16_t>(bits_of(value) >> 16);
    } else {
      out[i] = value;
    }
  }
}

template <typename T>
inline float largest_magnitude(const T* x, int64_t count) {
  // Positive floats order as their bits do, and whole numbers have a vector maximum that needs no care about NaN.
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = bits_of(value_of(x[i])) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return float_of(largest);
}

// One group of 16 columns of an NVFP4 input; docs/numerics.md#nvfp4. Codes are doubled values, permuted within 8 columns as the
// nibbles of a weight vector come out: low nibbles are columns 0 4 1 5, high nibbles 2 6 3 7.
inline void quantize_nvfp4_group(const float* x, float global_scale, int8_t* codes, float* scale, int32_t* offset) {
  static const int kPlace[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  const float block = round_e4m3(min_of(largest_magnitude(x, 16) / (6.0f * global_scale), 448.0f));
  const float step = block * global_scale;
  float doubled[16];
  for (int i = 0; i < 16; ++i) doubled[i] = block > 0.0f ? double_e2m1(x[i] / step) : 0.0f;
  int32_t sum = 0;
  int8_t narrow[16];
  for (int i = 0; i < 16; ++i) {
    narrow[i] = static_cast<int8_t>(static_cast<int32_t>(doubled[i]));
    sum += narrow[i];
  }
  for (int i = 0; i < 16; ++i) codes[(i & 8) + kPlace[i & 7]] = narrow[i];
  *scale = block;
  *offset = -12 * sum;
}

template <typename T>
inline void quantize_values(const RowLayout& row, uint8_t* record) {
  T* values = reinterpret_cast<T*>(record);
  float* scales = reinterpret_cast<float*>(record + row.scales);
  const bool token = row.kind == InputKind::kFp8Token;
  const int64_t group = token ? row.padded : 128;
  for (int64_t begin = 0, g = 0; begin < row.padded; begin += group, ++g) {
    const float amax = largest_magnitude(values + begin, group);
    // The floors of the two conventions: 1/(448*512) per token, 1e-10/448 per group of 128 columns.
    const float scale = token ? max_of(amax / 448.0f, 1.0f / (448.0f * 512.0f)) : max_of(amax, 1e-10f) / 448.0f;
    scales[g] = scale;
    for (int64_t i = begin; i < begin + group; ++i) {
      const float value = round_e4m3(value_of(values[i]) / scale);
      if constexpr (sizeof(T) == 2) {
        values[i] = static_cast<uint16_t>(bits_of(value) >> 16);
      } else {
        values[i] = value;
      }
    }
  }
}

void quantize_record(const RowLayout& row, uint8_t* record) {
  if (row.element == Element::kBf16) {
    quantize_values<uint16_t>(row, record);
  } else {
    quantize_values<float>(row, record);
  }
}

template <typename T>
inline void prepare_values(const float* x, const RowLayout& row, float scale, uint8_t* record) {
  T* values = reinterpret_cast<T*>(record);
  for (int64_t i = row.columns; i < row.padded; ++i) values[i] = 0;
  if (row.kind == InputKind::kFloat) {
    store_values(x, row.columns, values);
  } else if (row.kind == InputKind::kFp8Static) {
    store_e4m3(x, row.columns, scale, values);
  } else {
    const bool token = row.kind == InputKind::kFp8Token;
    float* scales = reinterpret_cast<float*>(record + row.scales);
    const int64_t group = token ? row.padded : 128;
    for (int64_t begin = 0, g = 0; begin < row.padded; begin += group, ++g) {
      const int64_t left = row.columns - begin;
      const int64_t count = left < 0 ? 0 : left < group ? left : group;
      const float amax = largest_magnitude(x + begin, count);
      scales[g] = token ? max_of(amax / 448.0f, 1.0f / (448.0f * 512.0f)) : max_of(amax, 1e-10f) / 448.0f;
      store_e4m3(x + begin, count, scales[g], values + begin);
    }
  }
}

void prepare_row(const float* x, const RowLayout& row, float scale, uint8_t* record) {
  if (row.element == Element::kBf16) {
    prepare_values<uint16_t>(x, row, scale, record);
  } else if (row.element == Element::kF32) {
    prepare_values<float>(x, row, scale, record);
  } else {
    int8_t* codes = reinterpret_cast<int8_t*>(record);
    float* scales = reinterpret_cast<float*>(record + row.scales);
    int32_t* offsets = reinterpret_cast<int32_t*>(record + row.offsets);
    int64_t group = 0;
    for (; group < row.columns / 16; ++group) {
      quantize_nvfp4_group(x + group * 16, scale, codes + group * 16, scales + group, offsets + group);
    }
    for (; group < row.padded / 16; ++group) {
      for (int i = 0; i < 16; ++i) codes[group * 16 + i] = 0;
      scales[group] = 0.0f;
      offsets[group] = 0;
    }
  }
}

// sums * factor * token scale + bias, for the 16 lanes of one token.
inline void apply_epilogue(const TileEpilogue& epilogue, const RowLayout& input, const uint8_t* record, const float* sums, float* out) {
  const float token = input.kind == InputKind::kFp8Token ? *reinterpret_cast<const float*>(record + input.scales) : 1.0f;
  for (int r = 0; r < kTileRows; ++r) out[r] = sums[r] * epilogue.factors[r] * token;
  if (epilogue.bias != nullptr) {
    for (int r = 0; r < kTileRows; ++r) out[r] += epilogue.bias[r];
  }
}

inline void activate(const Activation& activation, const float* gate, const float* up, float* out) {
  if (activation.kind == ActivationKind::kSilu) {
    for (int r = 0; r < kTileRows; ++r) out[r] = gate[r] * sigmoid_of(gate[r]) * up[r];
  } else {
    for (int r = 0; r < kTileRows; ++r) {
      const float g = min_of(gate[r], activation.limit);
      const float u = max_of(min_of(up[r], activation.limit), -activation.limit);
      out[r] = (u + 1.0f) * (g * sigmoid_of(activation.alpha * g));
    }
  }
}

// The intermediate is rounded to bf16 wherever the input of the down projection is quantized or held as bf16: that is the type in
// which the formats' own definition sees it. A tile's 16 columns are one NVFP4 group, so that it is quantized as it finishes.
void gate_up(const GateUpArgs& args, int num_tokens, const uint8_t* const* inputs, const float* gate_sums, const float* up_sums,
             int64_t tile, uint8_t* const* records) {
  const RowLayout& row = *args.intermediate;
  for (int m = 0; m < num_tokens; ++m) {
    alignas(64) float gate[kTileRows];
    alignas(64) float up[kTileRows];
    alignas(64) float h[kTileRows];
    apply_epilogue(args.gate, *args.input, inputs[m], gate_sums + m * kTileRows, gate);
    apply_epilogue(args.up, *args.input, inputs[m], up_sums + m * kTileRows, up);
    activate(args.activation, gate, up, h);
    if (row.kind != InputKind::kFloat) {
      for (int r = 0; r < kTileRows; ++r) h[r] = float_of_bf16(bf16_of(h[r]));
    }
    uint8_t* record = records[m];
    if (row.kind == InputKind::kNvfp4) {
      quantize_nvfp4_group(h, args.intermediate_scale, reinterpret_cast<int8_t*>(record) + tile * 16,
                           reinterpret_cast<float*>(record + row.scales) + tile, reinterpret_cast<int32_t*>(record + row.offsets) + tile);
    } else if (row.element == Element::kBf16) {
      uint16_t* values = reinterpret_cast<uint16_t*>(record) + tile * kTileRows;
      if (row.kind == InputKind::kFp8Static) {
        store_e4m3(h, kTileRows, args.intermediate_scale, values);
      } else {
        store_values(h, kTileRows, values);
      }
    } else {
      float* values = reinterpret_cast<float*>(record) + tile * kTileRows;
      if (row.kind == InputKind::kFp8Static) {
        store_e4m3(h, kTileRows, args.intermediate_scale, values);
      } else {
        store_values(h, kTileRows, values);
      }
    }
  }
}

void finish(const TileEpilogue& epilogue, const RowLayout& input, int num_tokens, const uint8_t* const* inputs, const float* sums,
            const float* weights, float* const* outputs) {
  for (int m = 0; m < num_tokens; ++m) {
    alignas(64) float values[kTileRows];
    apply_epilogue(epilogue, input, inputs[m], sums + m * kTileRows, values);
    for (int r = 0; r < kTileRows; ++r) outputs[m][r] = values[r] * weights[m];
  }
}
