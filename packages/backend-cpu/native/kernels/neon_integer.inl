// NVFP4 weights and inputs in whole numbers on 128-bit registers. Included inside an unnamed namespace by the files
// that bring a `Dot`: how four rows of sixteen codes are multiplied depends on the processor, the result does not.

// Four e4m3 scales as floats times 2^-8: the bits of e4m3 in a half-precision number, exponent bias 15 instead of 7;
// subnormals too. A shift by 7 that extends the sign leaves it in two bits, one of which is not wanted.
inline float32x4_t decode_e4m3_scales(const uint8_t* bytes) {
  uint32_t four;
  __builtin_memcpy(&four, bytes, 4);
  const int16x8_t wide = vshll_n_s8(vcreate_s8(four), 7);
  const uint16x4_t half = vand_u16(vreinterpret_u16_s16(vget_low_s16(wide)), vdup_n_u16(0xbfff));
  return vcvt_f32_f16(vreinterpret_f16_u16(half));
}

// Codes of 16 columns of four rows, as doubled values: w[2v] and w[2v + 1] have columns 0 4 1 5 and 2 6 3 7 of eight of
// each row.
inline void decode_codes(const uint8_t* codes, int8x16_t* w) {
  const int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  const int8x16_t table = vld1q_s8(doubled);
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    const uint8x16_t packed = vld1q_u8(codes + v * kLine);
    w[2 * v] = vqtbl1q_s8(table, vandq_u8(packed, vdupq_n_u8(15)));
    w[2 * v + 1] = vqtbl1q_s8(table, vshrq_n_u8(packed, 4));
  }
}

// Dot::chunk(w, x): per row of four, the sum over 16 columns. w[i]: four bytes of each row, x: the codes of one token
// in the same order (row_operators.inl). |sum of a group| <= 16 * 12 * 12.
//
// All 16 rows at once stream the weights, with few tokens; four rows at a time keep the sums of many tokens in
// registers.
template <typename Dot, int M>
void nvfp4_integer_tile(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  constexpr int kQuarters = M <= 4 ? 4 : 1;
  for (int first = 0; first < 4; first += kQuarters) {
    float32x4_t acc[kQuarters][M];
    for (int q = 0; q < kQuarters; ++q) {
      for (int m = 0; m < M; ++m) acc[q][m] = vdupq_n_f32(0);
    }
    for (int64_t column = 0; column < args.columns; column += kChunkColumns) {
      const uint8_t* block = args.tile + column / 64 * block_bytes(WeightFormat::kNvfp4);
      const int64_t group = column % 64 / kChunkColumns;
#pragma GCC unroll 4
      for (int q = 0; q < kQuarters; ++q) {
        const int row = 4 * (first + q);
        const float32x4_t weight_scale = decode_e4m3_scales(block + group * kTileRows + row);
        int8x16_t w[4];
        decode_codes(block + kLine + group * 2 * kLine + row * 4, w);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) {
          const int8x16_t x = vld1q_s8(reinterpret_cast<const int8_t*>(rows[m]) + column);
          // Scales hold four bytes per group of 16 columns.
          float input_scale;
          __builtin_memcpy(&input_scale, rows[m] + args.row->scales + column / 4, 4);
          const float32x4_t sum = vcvtq_f32_s32(Dot::chunk(w, x));
          acc[q][m] = vfmaq_f32(acc[q][m], sum, vmulq_n_f32(weight_scale, input_scale));
        }
      }
    }
    for (int q = 0; q < kQuarters; ++q) {
      for (int m = 0; m < M; ++m) vst1q_f32(sums + m * kTileRows + 4 * (first + q), acc[q][m]);
    }
  }
}

template <typename Dot, int M = 1>
TileFn select_integer_tile(int num_tokens) {
  if constexpr (M > kMaxTileTokens) {
    return nullptr;
  } else {
    return num_tokens == M ? nvfp4_integer_tile<Dot, M> : select_integer_tile<Dot, M + 1>(num_tokens);
  }
}
