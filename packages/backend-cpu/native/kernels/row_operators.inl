// Operators on input rows and on the 16 sums of a tile. Included inside an unnamed namespace after lanes.inl, for the
// same reasons.

// Elements of a record as lanes. T: uint16_t (bf16) or float.
template <typename T>
inline Lanes load_values(const T* from) {
  if constexpr (sizeof(T) == 2) {
    return load_bf16(from);
  } else {
    return load_lanes(from);
  }
}

// Stores values that T holds exactly.
template <typename T>
inline void store_values(Lanes value, T* to) {
  if constexpr (sizeof(T) == 2) {
    store_bf16(value, to);
  } else {
    store_lanes(value, to);
  }
}

template <typename T>
inline void store_rounded(Lanes value, T* to) {
  store_values(sizeof(T) == 2 ? round_bf16(value) : value, to);
}

template <typename T>
inline void store_zeros(T* to, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 16) store_values(Lanes{}, to + i);
}

inline float largest_magnitude(const float* x, int64_t count) {
  BitLanes largest = {};
  for (int64_t i = 0; i < count; i += 16) {
    const BitLanes bits = bits_of(load_some(x + i, count - i)) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest_of(largest);
}

// The floors of the two conventions: 1/(448*512) per token, 1e-10/448 per group of 128 columns.
inline float e4m3_scale(InputKind kind, float amax) {
  return kind == InputKind::kFp8Token ? max_of(1.0f / (448.0f * 512.0f), amax / 448.0f) : max_of(1e-10f, amax) / 448.0f;
}

inline int64_t scale_columns(const RowLayout& row) { return row.kind == InputKind::kFp8Token ? row.padded : 128; }

// Codes of an NVFP4 input lie as the nibbles of a weight vector come out: of 8 columns, low nibbles are 0 4 1 5, high
// nibbles 2 6 3 7. Place of each column:
[[maybe_unused]] constexpr int kNvfp4Place[8] = {0, 2, 4, 6, 1, 3, 5, 7};

// One group of 16 columns of an NVFP4 input; docs/numerics.md#nvfp4. Codes are doubled values.
inline void quantize_nvfp4_group(Lanes x, float global_scale, int8_t* codes, float* scale, int32_t* offset) {
  const float amax = largest_of(bits_of(x) & 0x7fffffffu);
  const float block = round_e4m3(min_of(amax / (6.0f * global_scale), 448.0f));
  const float step = block * global_scale;
  // A block scale of zero makes every quotient infinite or NaN; all its codes are zero.
  const IntLanes doubled = block > 0.0f ? double_e2m1(x / splat(step)) : IntLanes{};
  const ByteLanes narrow = __builtin_convertvector(doubled, ByteLanes);
  const ByteLanes placed =
      __builtin_shufflevector(narrow, narrow, 0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  __builtin_memcpy(codes, &placed, 16);
  *scale = block;
  *offset = -12 * sum_of(doubled);
}

template <typename T>
inline void quantize_values(const RowLayout& row, uint8_t* record) {
  T* values = reinterpret_cast<T*>(record);
  float* scales = reinterpret_cast<float*>(record + row.scales);
  const int64_t group = scale_columns(row);
  for (int64_t begin = 0, g = 0; begin < row.padded; begin += group, ++g) {
    BitLanes largest = {};
    for (int64_t i = begin; i < begin + group; i += 16) {
      const BitLanes bits = bits_of(load_values(values + i)) & 0x7fffffffu;
      largest = bits > largest ? bits : largest;
    }
    scales[g] = e4m3_scale(row.kind, largest_of(largest));
    for (int64_t i = begin; i < begin + group; i += 16) {
      store_values(round_e4m3(load_values(values + i) / splat(scales[g])), values + i);
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
  const bool quantized = row.kind != InputKind::kFloat && row.kind != InputKind::kBf16;
  const bool dynamic = quantized && row.kind != InputKind::kFp8Static;
  float* scales = reinterpret_cast<float*>(record + row.scales);
  const int64_t group = dynamic ? scale_columns(row) : row.padded;
  for (int64_t begin = 0, g = 0; begin < row.padded; begin += group, ++g) {
    const int64_t end = begin + group < row.columns ? begin + group : row.columns;
    if (dynamic) scales[g] = scale = e4m3_scale(row.kind, largest_magnitude(x + begin, end - begin));
    for (int64_t i = begin; i < end; i += 16) {
      const Lanes value = load_some(x + i, end - i);
      if (quantized) {
        store_values(round_e4m3(value / splat(scale)), values + i);
      } else {
        store_rounded(value, values + i);
      }
    }
  }
  store_zeros(values, round_up(row.columns, 16), row.padded);
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
    for (int64_t group = 0; group < row.padded / 16; ++group) {
      const Lanes value = group < row.columns / 16 ? load_lanes(x + group * 16) : Lanes{};
      quantize_nvfp4_group(value, scale, codes + group * 16, scales + group, offsets + group);
    }
  }
}

// sums * factor * token scale + bias, for the 16 lanes of one token.
inline Lanes apply_epilogue(const TileEpilogue& epilogue, const RowLayout& input, const uint8_t* record,
                            const float* sums) {
  Lanes value = load_lanes(sums) * load_lanes(epilogue.factors);
  if (input.kind == InputKind::kFp8Token) value *= *reinterpret_cast<const float*>(record + input.scales);
  return epilogue.bias == nullptr ? value : value + load_lanes(epilogue.bias);
}

inline Lanes activate(const Activation& activation, Lanes gate, Lanes up) {
  if (activation.kind == ActivationKind::kSilu) return gate * sigmoid_of(gate) * up;
  const Lanes limit = splat(activation.limit);
  const Lanes g = min_of(limit, gate);
  const Lanes u = max_of(-limit, min_of(limit, up));
  return (u + 1.0f) * (g * sigmoid_of(activation.alpha * g));
}

template <typename T>
inline void store_intermediate(Lanes h, InputKind kind, float scale, T* to) {
  if (kind == InputKind::kFp8Static) {
    store_values(round_e4m3(h / splat(scale)), to);
  } else {
    store_rounded(h, to);
  }
}

// The intermediate is rounded to bf16 wherever the input of the down projection is quantized or held as bf16: that is
// the type in which the formats' own definition sees it. A tile's 16 columns are one NVFP4 group, so that it is
// quantized as it finishes.
void gate_up(const GateUpArgs& args, int num_tokens, const uint8_t* const* inputs, const float* gate_sums,
             const float* up_sums, int64_t tile, uint8_t* const* records) {
  const RowLayout& row = *args.intermediate;
  for (int m = 0; m < num_tokens; ++m) {
    const Lanes gate = apply_epilogue(args.gate, *args.input, inputs[m], gate_sums + m * kTileRows);
    const Lanes up = apply_epilogue(args.up, *args.input, inputs[m], up_sums + m * kTileRows);
    const Lanes exact = activate(args.activation, gate, up);
    const Lanes h = row.kind == InputKind::kFloat ? exact : round_bf16(exact);
    uint8_t* record = records[m];
    if (row.kind == InputKind::kNvfp4) {
      quantize_nvfp4_group(h, args.intermediate_scale, reinterpret_cast<int8_t*>(record) + tile * 16,
                           reinterpret_cast<float*>(record + row.scales) + tile,
                           reinterpret_cast<int32_t*>(record + row.offsets) + tile);
    } else if (row.element == Element::kBf16) {
      store_intermediate(h, row.kind, args.intermediate_scale, reinterpret_cast<uint16_t*>(record) + tile * kTileRows);
    } else {
      store_intermediate(h, row.kind, args.intermediate_scale, reinterpret_cast<float*>(record) + tile * kTileRows);
    }
  }
}

void finish(const TileEpilogue& epilogue, const RowLayout& input, int num_tokens, const uint8_t* const* inputs,
            const float* sums, const float* weights, float* const* outputs) {
  for (int m = 0; m < num_tokens; ++m) {
    store_lanes(apply_epilogue(epilogue, input, inputs[m], sums + m * kTileRows) * weights[m], outputs[m]);
  }
}
