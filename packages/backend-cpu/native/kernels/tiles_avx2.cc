// Tile functions for processors with AVX2, FMA and F16C (Haswell and later, Zen and later).
//
// Sixteen registers hold eight rows at a time: a tile is worked on in two halves of 8 rows. Decoded columns serve four
// or six tokens; inputs are f32. With more tokens the half is walked again, which costs decoding but changes no sum.
//
// Four- and eight-bit codes become half-precision numbers by byte operations, two columns of each row side by side, and
// vcvtph2ps makes floats of them: the sums of even and of odd columns run in neighbouring lanes and meet at the end.
#include <immintrin.h>

#include "isa_kernels.h"

namespace moe {
namespace {

#include "lanes.inl"
#include "row_operators.inl"

constexpr int kHalfRows = 8;

inline __m256i load(const uint8_t* data) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(data)); }

inline __m256i broadcast_word(const uint8_t* x) {
  int32_t word;
  __builtin_memcpy(&word, x, 4);
  return _mm256_set1_epi32(word);
}

// e4m3 bits at the top of 16-bit words to half-precision bits: values times 2^-8, see tiles_avx512.cc.
inline __m256i half_bits(__m256i words) {
  return _mm256_and_si256(_mm256_srai_epi16(words, 1), _mm256_set1_epi16(static_cast<short>(0xbf80)));
}

inline __m256 decode_e4m3_scales(const uint8_t* bytes) {
  const __m128i wide = _mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes))), 8);
  return _mm256_cvtph_ps(_mm_and_si128(_mm_srai_epi16(wide, 1), _mm_set1_epi16(static_cast<short>(0xbf80))));
}

inline __m256 decode_e8m0_scales(const uint8_t* bytes) {
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
  return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_slli_epi32(wide, 23), _mm256_set1_epi32(0x00400000)));
}

// Multiplies one decoded column into the partial sums of M tokens.
template <int M>
inline void multiply_column(__m256 w, const float* const* x, int64_t column, __m256* partial) {
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) partial[m] = _mm256_fmadd_ps(w, _mm256_broadcast_ss(x[m] + column), partial[m]);
}

// The same for two columns of eight rows: `halves` has rows 0-3 in its low lane and rows 4-7 in its high lane, each as
// pairs of columns in half precision. Tokens have two registers each.
template <int M>
inline void multiply_columns(__m256i halves, const float* const* x, int64_t column, __m256* partial) {
  const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
  const __m256 high = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    double both;
    __builtin_memcpy(&both, x[m] + column, 8);
    const __m256 pair = _mm256_castpd_ps(_mm256_set1_pd(both));
    partial[2 * m] = _mm256_fmadd_ps(low, pair, partial[2 * m]);
    partial[2 * m + 1] = _mm256_fmadd_ps(high, pair, partial[2 * m + 1]);
  }
}

// Decoders. `chunk` multiplies the 16 columns of one chunk and one half (0 or 1: rows 0-7 or 8-15) into kParts
// registers per token; `scale` gives the factors of these registers; `combine` makes one register of eight rows of
// them.

struct Paired {
  static constexpr int kParts = 2;
  static constexpr int kTokensAtOnce = 4;
  static inline __m256 combine(const __m256* acc) {
    // Rows 0 1 4 5 and 2 3 6 7 in the two lanes.
    const __m256 sums = _mm256_hadd_ps(acc[0], acc[1]);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(sums), 0xd8));
  }
};

struct Single {
  static constexpr bool kScaled = false;
  static constexpr int kParts = 1;
  static constexpr int kTokensAtOnce = 6;
  static inline __m256 combine(const __m256* acc) { return acc[0]; }
  static inline void scale(const TileArgs&, int64_t, int, __m256* factors) { factors[0] = _mm256_set1_ps(1.0f); }
};

template <WeightFormat F>
struct Fp4 : Paired {
  static constexpr bool kScaled = true;
  template <int M>
  static inline void chunk(const TileArgs& args, int64_t column, int half, const float* const* x, __m256* partial) {
    // The high bytes of the e2m1 values in half precision; the low bytes are zero.
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0x00, 0x38, 0x3c, 0x3e, 0x40, 0x42, 0x44, 0x46, static_cast<char>(0x80), static_cast<char>(0xb8),
                      static_cast<char>(0xbc), static_cast<char>(0xbe), static_cast<char>(0xc0),
                      static_cast<char>(0xc2), static_cast<char>(0xc4), static_cast<char>(0xc6)));
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i high_bytes = _mm256_set1_epi16(static_cast<short>(0xff00));
    const uint8_t* codes =
        args.tile + column / block_columns(F) * block_bytes(F) + kLine + column % block_columns(F) * 8 + half * 32;
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m256i lanes = load(codes + v * kLine);
      // Per row, columns 0 4 1 5 of 8 and 2 6 3 7.
      const __m256i first = _mm256_shuffle_epi8(table, _mm256_and_si256(lanes, nibble));
      const __m256i second = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(lanes, 4), nibble));
      const int64_t k = column + 8 * v;
      multiply_columns<M>(_mm256_slli_epi16(first, 8), x, k, partial);
      multiply_columns<M>(_mm256_slli_epi16(second, 8), x, k + 2, partial);
      multiply_columns<M>(_mm256_and_si256(first, high_bytes), x, k + 4, partial);
      multiply_columns<M>(_mm256_and_si256(second, high_bytes), x, k + 6, partial);
    }
  }
  static inline void scale(const TileArgs& args, int64_t column, int half, __m256* factors) {
    const uint8_t* block = args.tile + column / block_columns(F) * block_bytes(F) + half * kHalfRows;
    const int64_t within = column % block_columns(F);
    const __m256 rows = F == WeightFormat::kNvfp4 ? decode_e4m3_scales(block + within / 16 * kTileRows)
                                                  : decode_e8m0_scales(block + within / 32 * kTileRows);
    factors[0] = _mm256_permutevar8x32_ps(rows, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
    factors[1] = _mm256_permutevar8x32_ps(rows, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
  }
};

template <bool Blocks>
struct Fp8 : Paired {
  static constexpr bool kScaled = Blocks;
  template <int M>
  static inline void chunk(const TileArgs& args, int64_t column, int half, const float* const* x, __m256* partial) {
    const uint8_t* codes = args.tile + column * kTileRows + half * 32;
    const __m256i zero = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const __m256i bytes = load(codes + v * kLine);
      const int64_t k = column + 4 * v;
      multiply_columns<M>(half_bits(_mm256_unpacklo_epi8(zero, bytes)), x, k, partial);
      multiply_columns<M>(half_bits(_mm256_unpackhi_epi8(zero, bytes)), x, k + 2, partial);
    }
  }
  static inline void scale(const TileArgs& args, int64_t column, int, __m256* factors) {
    factors[0] = factors[1] = _mm256_set1_ps(args.block_scales[column / 128]);
  }
};

struct Bf16 : Single {
  template <int M>
  static inline void chunk(const TileArgs& args, int64_t column, int half, const float* const* x, __m256* partial) {
    const uint8_t* values = args.tile + column * 32 + half * 32;
    const __m256i high = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u));
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m256i lanes = load(values + i * kLine);
      multiply_column<M>(_mm256_castsi256_ps(_mm256_slli_epi32(lanes, 16)), x, column + 2 * i, partial);
      multiply_column<M>(_mm256_castsi256_ps(_mm256_and_si256(lanes, high)), x, column + 2 * i + 1, partial);
    }
  }
};

struct F16 : Single {
  template <int M>
  static inline void chunk(const TileArgs& args, int64_t column, int half, const float* const* x, __m256* partial) {
    const uint8_t* values = args.tile + column * 32 + half * 16;
#pragma GCC unroll 4
    for (int k = 0; k < kChunkColumns; ++k) {
      const __m256 w = _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(values + k * 32)));
      multiply_column<M>(w, x, column + k, partial);
    }
  }
};

template <typename Decoder, bool InputScaled, int M>
void float_half(const TileArgs& args, const uint8_t* const* rows, int half, float* sums) {
  constexpr int kParts = Decoder::kParts;
  const float* x[M];
  for (int m = 0; m < M; ++m) x[m] = reinterpret_cast<const float*>(rows[m]);
  __m256 acc[M * kParts];
  for (int i = 0; i < M * kParts; ++i) acc[i] = _mm256_setzero_ps();
  for (int64_t column = 0; column < args.columns; column += kChunkColumns) {
    __m256 partial[M * kParts];
#pragma GCC unroll 8
    for (int i = 0; i < M * kParts; ++i) partial[i] = _mm256_setzero_ps();
    Decoder::template chunk<M>(args, column, half, x, partial);
    if constexpr (!Decoder::kScaled) {
#pragma GCC unroll 8
      for (int i = 0; i < M * kParts; ++i) acc[i] = _mm256_add_ps(acc[i], partial[i]);
    } else {
      __m256 factors[kParts];
      Decoder::scale(args, column, half, factors);
#pragma GCC unroll 8
      for (int i = 0; i < M * kParts; ++i) {
        __m256 factor = factors[i % kParts];
        if constexpr (InputScaled) {
          const float* group = reinterpret_cast<const float*>(rows[i / kParts] + args.row->scales) + column / 128;
          factor = _mm256_mul_ps(factor, _mm256_broadcast_ss(group));
        }
        acc[i] = _mm256_fmadd_ps(partial[i], factor, acc[i]);
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    _mm256_storeu_ps(sums + m * kTileRows + half * kHalfRows, Decoder::combine(acc + m * kParts));
  }
}

template <typename Decoder, bool InputScaled, int M>
void float_tile(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  constexpr int kFirst = M < Decoder::kTokensAtOnce ? M : Decoder::kTokensAtOnce;
  for (int half = 0; half < 2; ++half) float_half<Decoder, InputScaled, kFirst>(args, rows, half, sums);
  if constexpr (M > kFirst) {
    float_tile<Decoder, InputScaled, M - kFirst>(args, rows + kFirst, sums + kFirst * kTileRows);
  }
}

template <int M>
void nvfp4_integer_tile(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int half = 0; half < 2; ++half) {
    __m256 acc[M];
    for (int m = 0; m < M; ++m) acc[m] = _mm256_setzero_ps();
    for (int64_t column = 0; column < args.columns; column += kChunkColumns) {
      const uint8_t* block = args.tile + column / 64 * block_bytes(WeightFormat::kNvfp4);
      const int64_t group = column % 64 / kChunkColumns;
      const uint8_t* codes = block + kLine + group * 2 * kLine + half * 32;
      const __m256 weight_scale = decode_e4m3_scales(block + group * kTileRows + half * kHalfRows);
      __m256i w[4];
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const __m256i packed = load(codes + v * kLine);
        w[2 * v] = _mm256_shuffle_epi8(table, _mm256_and_si256(packed, nibble));
        w[2 * v + 1] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble));
      }
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const uint8_t* row = rows[m] + column;
        const uint8_t* at = rows[m] + column / 4;
        // A sum of two products is at most 2 * 24 * 12, four of those fit 16 bits.
        __m256i words = _mm256_maddubs_epi16(w[0], broadcast_word(row));
#pragma GCC unroll 3
        for (int i = 1; i < 4; ++i)
          words = _mm256_add_epi16(words, _mm256_maddubs_epi16(w[i], broadcast_word(row + 4 * i)));
        const __m256i p = _mm256_add_epi32(_mm256_madd_epi16(words, ones), broadcast_word(at + args.row->offsets));
        const __m256 input_scale = _mm256_castsi256_ps(broadcast_word(at + args.row->scales));
        acc[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(p), _mm256_mul_ps(weight_scale, input_scale), acc[m]);
      }
    }
    for (int m = 0; m < M; ++m) _mm256_storeu_ps(sums + m * kTileRows + half * kHalfRows, acc[m]);
  }
}

template <int M>
TileFn select(WeightFormat format, InputKind kind) {
  const bool plain = kind == InputKind::kFloat;
  switch (format) {
    case WeightFormat::kNvfp4:
      if (kind == InputKind::kNvfp4) return nvfp4_integer_tile<M>;
      return plain ? float_tile<Fp4<WeightFormat::kNvfp4>, false, M> : nullptr;
    case WeightFormat::kMxfp4:
      return plain ? float_tile<Fp4<WeightFormat::kMxfp4>, false, M> : nullptr;
    case WeightFormat::kFp8:
      if (kind == InputKind::kNvfp4 || kind == InputKind::kFp8Group128) return nullptr;
      return float_tile<Fp8<false>, false, M>;
    case WeightFormat::kFp8Block128:
      if (kind == InputKind::kFp8Group128) return float_tile<Fp8<true>, true, M>;
      return plain ? float_tile<Fp8<true>, false, M> : nullptr;
    case WeightFormat::kBf16:
      return plain ? float_tile<Bf16, false, M> : nullptr;
    case WeightFormat::kF16:
      return plain ? float_tile<F16, false, M> : nullptr;
  }
  return nullptr;
}

template <int M>
TileFn select_tokens(WeightFormat format, InputKind kind, int num_tokens) {
  if constexpr (M > kMaxTileTokens) {
    return nullptr;
  } else {
    return num_tokens == M ? select<M>(format, kind) : select_tokens<M + 1>(format, kind, num_tokens);
  }
}

TileFn tile(WeightFormat format, InputKind kind, int num_tokens) { return select_tokens<1>(format, kind, num_tokens); }

Element element(WeightFormat, InputKind kind) { return kind == InputKind::kNvfp4 ? Element::kCode8 : Element::kF32; }

// e4m3 weights and block scales are decoded 2^8 too small, and both factors of an integer product are doubled.
float sum_factor(WeightFormat format, InputKind kind) {
  switch (format) {
    case WeightFormat::kNvfp4:
      return kind == InputKind::kNvfp4 ? 64.0f : 256.0f;
    case WeightFormat::kFp8:
    case WeightFormat::kFp8Block128:
      return 256.0f;
    default:
      return 1.0f;
  }
}

}  // namespace

const IsaKernels& avx2_kernels() {
  static const IsaKernels kernels = {Isa::kAvx2,  "avx2",          element, tile,  sum_factor,
                                     prepare_row, quantize_record, gate_up, finish};
  return kernels;
}

}  // namespace moe
