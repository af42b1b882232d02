// Tile functions for processors with AVX2, FMA and F16C (Haswell and later, Zen and later).
//
// Sixteen registers hold the partial sums of one chunk of 16 columns for four or six tokens and what is being decoded;
// the sums themselves lie on the stack, one load and one store per chunk. With more tokens a chunk is decoded again for
// the next of them, out of the first-level cache: weights stream once, and no sum depends on how many share them.
//
// Four- and eight-bit codes become floats two columns of each row side by side: the sums of even and of odd columns run
// in neighbouring lanes and meet at the end.
#include <immintrin.h>

#include "avx2_tiles.h"
#include "isa_kernels.h"

namespace moe {
namespace {

#include "avx2_integer.inl"
#include "lanes.inl"
#include "row_operators.inl"

inline __m256 decode_e8m0_scales(const uint8_t* bytes) {
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
  return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_slli_epi32(wide, 23), _mm256_set1_epi32(0x00400000)));
}

// Decoders. A tile is worked on in kUnits parts, whose rows fill two registers per token: `chunk` multiplies 16 columns
// of one unit into them, ascending per lane, x being the tokens' values in these columns; `scale` gives the factors of
// the two registers; `store` puts their sums in the order of the rows. `fetch` asks for weights well ahead of a chunk.
// kTokensAtOnce leaves registers to the decoder.

// Multiplies two registers of weights by what `broadcast` makes of each token, into two sums per token.
template <int M, typename Broadcast>
[[gnu::always_inline]] inline void multiply(__m256 w0, __m256 w1, Broadcast broadcast, __m256* partial) {
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    const __m256 x = broadcast(m);
    partial[2 * m] = _mm256_fmadd_ps(w0, x, partial[2 * m]);
    partial[2 * m + 1] = _mm256_fmadd_ps(w1, x, partial[2 * m + 1]);
  }
}

// Units of 8 rows, two columns of each row in neighbouring lanes.
struct Paired {
  static constexpr int kUnits = 2;
  static constexpr int kTokensAtOnce = 4;
  template <int M>
  [[gnu::always_inline]] static inline void multiply_columns(__m256 w0, __m256 w1, const float* const* x, int k,
                                                             __m256* partial) {
    const auto pair = [&](int m) {
      double both;
      __builtin_memcpy(&both, x[m] + k, 8);
      return _mm256_castpd_ps(_mm256_set1_pd(both));
    };
    multiply<M>(w0, w1, pair, partial);
  }
};

template <WeightFormat F>
struct Fp4 : Paired {
  static constexpr bool kScaled = true;
  static inline void fetch(const TileArgs& args, int64_t column) {
    const uint8_t* block = args.tile + column / block_columns(F) * block_bytes(F);
    const int64_t within = column % block_columns(F);
    if (within == 0) prefetch(block);
    prefetch(block + kLine + within * 8);
    prefetch(block + kLine + within * 8 + kLine);
  }
  // The e2m1 values as bf16, the upper half of a float; one table per byte.
  template <int M>
  [[gnu::always_inline]] static inline void chunk(const TileArgs& args, int64_t column, int unit, const float* const* x,
                                                  __m256* partial) {
    const __m256i low_bytes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0x00, 0x00, static_cast<char>(0x80), static_cast<char>(0xc0), 0x00, 0x40, static_cast<char>(0x80),
                      static_cast<char>(0xc0), 0x00, 0x00, static_cast<char>(0x80), static_cast<char>(0xc0), 0x00, 0x40,
                      static_cast<char>(0x80), static_cast<char>(0xc0)));
    const __m256i high_bytes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0x00, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, static_cast<char>(0x80), static_cast<char>(0xbf),
                      static_cast<char>(0xbf), static_cast<char>(0xbf), static_cast<char>(0xc0),
                      static_cast<char>(0xc0), static_cast<char>(0xc0), static_cast<char>(0xc0)));
    const __m256i nibble = _mm256_set1_epi8(15);
    const uint8_t* codes =
        args.tile + column / block_columns(F) * block_bytes(F) + kLine + column % block_columns(F) * 8 + unit * 32;
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m256i lanes = load(codes + v * kLine);
      // Per row, columns 0 4 1 5 of 8 and 2 6 3 7.
      const __m256i first = _mm256_and_si256(lanes, nibble);
      const __m256i second = _mm256_and_si256(_mm256_srli_epi16(lanes, 4), nibble);
      const __m256i first_low = _mm256_shuffle_epi8(low_bytes, first);
      const __m256i first_high = _mm256_shuffle_epi8(high_bytes, first);
      const __m256i second_low = _mm256_shuffle_epi8(low_bytes, second);
      const __m256i second_high = _mm256_shuffle_epi8(high_bytes, second);
      // Rows 0 1 4 5 and 2 3 6 7.
      const __m256i a0 = _mm256_unpacklo_epi8(first_low, first_high);
      const __m256i a1 = _mm256_unpackhi_epi8(first_low, first_high);
      const __m256i b0 = _mm256_unpacklo_epi8(second_low, second_high);
      const __m256i b1 = _mm256_unpackhi_epi8(second_low, second_high);
      const int k = 8 * v;
      multiply_columns<M>(lower(a0), lower(a1), x, k, partial);
      multiply_columns<M>(lower(b0), lower(b1), x, k + 2, partial);
      multiply_columns<M>(upper(a0), upper(a1), x, k + 4, partial);
      multiply_columns<M>(upper(b0), upper(b1), x, k + 6, partial);
    }
  }
  static inline void scale(const TileArgs& args, int64_t column, int unit, __m256* factors) {
    const uint8_t* block = args.tile + column / block_columns(F) * block_bytes(F) + unit * kHalfRows;
    const int64_t within = column % block_columns(F);
    const __m256 rows = F == WeightFormat::kNvfp4 ? decode_e4m3_scales(block + within / 16 * kTileRows)
                                                  : decode_e8m0_scales(block + within / 32 * kTileRows);
    factors[0] = _mm256_unpacklo_ps(rows, rows);
    factors[1] = _mm256_unpackhi_ps(rows, rows);
  }
  static inline void store(const __m256* acc, int unit, float* sums) {
    _mm256_storeu_ps(sums + unit * kHalfRows, _mm256_hadd_ps(acc[0], acc[1]));
  }

 private:
  static inline __m256 lower(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
  static inline __m256 upper(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u))));
  }
};

// e4m3 by way of half precision, as the block scales.
template <bool Blocks>
struct Fp8 : Paired {
  static constexpr bool kScaled = Blocks;
  static inline void fetch(const TileArgs& args, int64_t column) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) prefetch(args.tile + column * kTileRows + v * kLine);
  }
  template <int M>
  [[gnu::always_inline]] static inline void chunk(const TileArgs& args, int64_t column, int unit, const float* const* x,
                                                  __m256* partial) {
    const uint8_t* codes = args.tile + column * kTileRows + unit * 32;
    const __m256i zero = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const __m256i bytes = load(codes + v * kLine);
      const int k = 4 * v;
      multiply_halves<M>(_mm256_unpacklo_epi8(zero, bytes), x, k, partial);
      multiply_halves<M>(_mm256_unpackhi_epi8(zero, bytes), x, k + 2, partial);
    }
  }
  static inline void scale(const TileArgs& args, int64_t column, int, __m256* factors) {
    factors[0] = factors[1] = _mm256_set1_ps(args.block_scales[column / 128]);
  }
  static inline void store(const __m256* acc, int unit, float* sums) {
    // Rows 0 1 4 5 and 2 3 6 7 in the two lanes.
    const __m256 both = _mm256_hadd_ps(acc[0], acc[1]);
    _mm256_storeu_ps(sums + unit * kHalfRows, _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(both), 0xd8)));
  }

 private:
  // `words` has e4m3 bits in its upper bytes: rows 0-3 in the low lane, rows 4-7 in the high lane.
  template <int M>
  [[gnu::always_inline]] static inline void multiply_halves(__m256i words, const float* const* x, int k,
                                                            __m256* partial) {
    const __m256i halves = _mm256_and_si256(_mm256_srai_epi16(words, 1), _mm256_set1_epi16(static_cast<short>(0xbf80)));
    multiply_columns<M>(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
                        _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)), x, k, partial);
  }
};

// One unit of 16 rows, a column of rows 0-7 and of rows 8-15 in the two registers.
struct Single {
  static constexpr bool kScaled = false;
  static constexpr int kUnits = 1;
  static constexpr int kTokensAtOnce = 6;
  static inline void fetch(const TileArgs& args, int64_t column) {
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) prefetch(args.tile + column * 32 + v * kLine);
  }
  template <int M>
  [[gnu::always_inline]] static inline void multiply_column(__m256 w0, __m256 w1, const float* const* x, int k,
                                                            __m256* partial) {
    multiply<M>(w0, w1, [&](int m) { return _mm256_broadcast_ss(x[m] + k); }, partial);
  }
  static inline void scale(const TileArgs&, int64_t, int, __m256*) {}
  static inline void store(const __m256* acc, int, float* sums) {
    _mm256_storeu_ps(sums, acc[0]);
    _mm256_storeu_ps(sums + kHalfRows, acc[1]);
  }
};

struct Bf16 : Single {
  template <int M>
  [[gnu::always_inline]] static inline void chunk(const TileArgs& args, int64_t column, int, const float* const* x,
                                                  __m256* partial) {
    const uint8_t* values = args.tile + column * 32;
    const __m256i high = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u));
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m256i a = load(values + i * kLine);
      const __m256i b = load(values + i * kLine + 32);
      multiply_column<M>(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16)),
                         x, 2 * i, partial);
      multiply_column<M>(_mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high)),
                         x, 2 * i + 1, partial);
    }
  }
};

struct F16 : Single {
  template <int M>
  [[gnu::always_inline]] static inline void chunk(const TileArgs& args, int64_t column, int, const float* const* x,
                                                  __m256* partial) {
    const uint8_t* values = args.tile + column * 32;
#pragma GCC unroll 16
    for (int k = 0; k < kChunkColumns; ++k) {
      const auto* halves = reinterpret_cast<const __m128i*>(values + k * 32);
      multiply_column<M>(_mm256_cvtph_ps(_mm_load_si128(halves)), _mm256_cvtph_ps(_mm_load_si128(halves + 1)), x, k,
                         partial);
    }
  }
};

// Adds the products of one chunk and unit to the sums of M tokens.
template <typename Decoder, bool InputScaled, int M>
[[gnu::always_inline]] inline void add_chunk(const TileArgs& args, const uint8_t* const* rows, int64_t column, int unit,
                                             __m256 (*acc)[2]) {
  // Or the compiler does once for several units and groups what they have in common and, short of registers, stores it.
  __asm__ volatile("" ::: "memory");
  const float* x[M];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) x[m] = reinterpret_cast<const float*>(rows[m]) + column;
  __m256 partial[2 * M];
#pragma GCC unroll 12
  for (int i = 0; i < 2 * M; ++i) partial[i] = _mm256_setzero_ps();
  Decoder::template chunk<M>(args, column, unit, x, partial);
  __m256 factors[2];
  if constexpr (Decoder::kScaled) Decoder::scale(args, column, unit, factors);
#pragma GCC unroll 12
  for (int i = 0; i < 2 * M; ++i) {
    __m256& sum = acc[i / 2][i % 2];
    if constexpr (!Decoder::kScaled) {
      sum = _mm256_add_ps(sum, partial[i]);
    } else {
      __m256 factor = factors[i % 2];
      if constexpr (InputScaled) {
        const float* group = reinterpret_cast<const float*>(rows[i / 2] + args.row->scales) + column / 128;
        factor = _mm256_mul_ps(factor, _mm256_broadcast_ss(group));
      }
      sum = _mm256_fmadd_ps(partial[i], factor, sum);
    }
  }
}

template <typename Decoder, bool InputScaled, int M>
void float_tile(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  // As few groups of tokens as registers allow, of nearly equal size.
  constexpr int kGroups = (M + Decoder::kTokensAtOnce - 1) / Decoder::kTokensAtOnce;
  constexpr int kGroup = (M + kGroups - 1) / kGroups;
  constexpr int kLast = M % kGroup;
  __m256 acc[Decoder::kUnits][M][2];
  for (int u = 0; u < Decoder::kUnits; ++u) {
    for (int m = 0; m < M; ++m) acc[u][m][0] = acc[u][m][1] = _mm256_setzero_ps();
  }
  for (int64_t column = 0; column < args.columns; column += kChunkColumns) {
    Decoder::fetch(args, column);
    for (int u = 0; u < Decoder::kUnits; ++u) {
      for (int m = 0; m + kGroup <= M; m += kGroup) {
        add_chunk<Decoder, InputScaled, kGroup>(args, rows + m, column, u, acc[u] + m);
      }
      if constexpr (kLast > 0) {
        add_chunk<Decoder, InputScaled, kLast>(args, rows + M - kLast, column, u, acc[u] + M - kLast);
      }
    }
  }
  for (int u = 0; u < Decoder::kUnits; ++u) {
    for (int m = 0; m < M; ++m) Decoder::store(acc[u][m], u, sums + m * kTileRows);
  }
}

// pmaddubsw adds two products to 16 bits, which hold four of its sums as well: 8 * 24 * 12.
struct WideningDot {
  static inline void chunk(const __m256i (&w)[2][4], const uint8_t* x, __m256i start, __m256i* p) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i words[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i four = broadcast_word(x + 4 * i);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m256i products = _mm256_maddubs_epi16(w[half][i], four);
        words[half] = i == 0 ? products : _mm256_add_epi16(words[half], products);
      }
    }
    for (int half = 0; half < 2; ++half) p[half] = _mm256_add_epi32(_mm256_madd_epi16(words[half], ones), start);
  }
};

template <int M>
TileFn select(WeightFormat format, InputKind kind) {
  const bool plain = kind == InputKind::kFloat;
  switch (format) {
    case WeightFormat::kNvfp4:
      if (kind == InputKind::kNvfp4) return nvfp4_integer_tile<WideningDot, M>;
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

TileFn vnni_tile(WeightFormat format, InputKind kind, int num_tokens) {
  const bool whole_numbers = format == WeightFormat::kNvfp4 && kind == InputKind::kNvfp4;
  return whole_numbers ? avxvnni_tile(num_tokens) : tile(format, kind, num_tokens);
}

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

const IsaKernels& avx2_kernels(bool has_vnni) {
  static const IsaKernels plain = {Isa::kAvx2,  "avx2",          element, tile,  sum_factor,
                                   prepare_row, quantize_record, gate_up, finish};
  static const IsaKernels with_vnni = {Isa::kAvx2,  "avx2 with vnni", element, vnni_tile, sum_factor,
                                       prepare_row, quantize_record,  gate_up, finish};
  return has_vnni ? with_vnni : plain;
}

}  // namespace moe
