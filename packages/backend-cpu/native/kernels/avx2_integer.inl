// NVFP4 weights and inputs in whole numbers on 256-bit registers. Included inside an unnamed namespace by the files
// that bring a `Dot`: how bytes are multiplied depends on the processor, the result does not.

constexpr int kHalfRows = 8;

// How far ahead weights are fetched: a few hundred cycles at the speed of memory.
constexpr int64_t kPrefetchBytes = 4096;

inline void prefetch(const uint8_t* data) {
  _mm_prefetch(reinterpret_cast<const char*>(data + kPrefetchBytes), _MM_HINT_T0);
}

inline __m256i load(const uint8_t* data) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(data)); }

inline __m256i broadcast_word(const uint8_t* x) {
  int32_t word;
  __builtin_memcpy(&word, x, 4);
  return _mm256_set1_epi32(word);
}

// Eight e4m3 scales as floats times 2^-8: the bits of e4m3 in a half-precision number, exponent bias 15 instead of 7;
// subnormals too.
inline __m256 decode_e4m3_scales(const uint8_t* bytes) {
  const __m128i wide = _mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes))), 8);
  return _mm256_cvtph_ps(_mm_and_si128(_mm_srai_epi16(wide, 1), _mm_set1_epi16(static_cast<short>(0xbf80))));
}

// One chunk of 16 columns: 8 registers hold the codes of the 16 rows, each as 2 * e2m1 + 12, an unsigned byte. Every
// word of a token that is broadcast meets both halves of the rows.
//
// Dot::chunk(w, x, start, p): p[half] = start + the sums over the chunk; x: the token's codes, in the order in which
// the nibbles come out (row_operators.inl); start: what the 12 in the weights added, with the opposite sign. |sum of a
// group| <= 16 * 24 * 12, exact.
template <typename Dot, int M>
void nvfp4_integer_tile(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  const __m256i nibble = _mm256_set1_epi8(15);
  const int64_t scales_offset = args.row->scales;
  const int64_t offsets_offset = args.row->offsets;
  __m256 acc[M][2];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_ps();
  const uint8_t* block = args.tile;
  for (int64_t column = 0; column < args.columns; column += 64, block += block_bytes(WeightFormat::kNvfp4)) {
    prefetch(block);
#pragma GCC unroll 1
    for (int c = 0; c < 4; ++c) {
      const uint8_t* codes = block + kLine + c * 2 * kLine;
      prefetch(codes);
      prefetch(codes + kLine);
      __m256i w[2][4];
      __m256 weight_scale[2];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        weight_scale[half] = decode_e4m3_scales(block + c * kTileRows + half * kHalfRows);
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          const __m256i packed = load(codes + v * kLine + half * 32);
          w[half][2 * v] = _mm256_shuffle_epi8(table, _mm256_and_si256(packed, nibble));
          w[half][2 * v + 1] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble));
        }
      }
      const int64_t x = column + c * kChunkColumns;
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        // Scales and offsets hold four bytes per group of 16 columns.
        const uint8_t* group = rows[m] + x / 4;
        __m256i p[2];
        Dot::chunk(w, rows[m] + x, broadcast_word(group + offsets_offset), p);
        const __m256 input_scale = _mm256_castsi256_ps(broadcast_word(group + scales_offset));
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          acc[m][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(p[half]), _mm256_mul_ps(weight_scale[half], input_scale),
                                         acc[m][half]);
        }
      }
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
    for (int half = 0; half < 2; ++half) _mm256_storeu_ps(sums + m * kTileRows + half * kHalfRows, acc[m][half]);
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
