// Tile functions for processors with AVX512 F, BW, VL, DQ, VBMI, VNNI and BF16 (Zen 4 and later, Sapphire Rapids and
// later).
//
// One chunk of 16 columns of a tile is decoded into 8 registers of bf16 pairs (4 registers of bytes for integers),
// which then serve up to 12 tokens: the sums of all tokens, the decoded weights and a few temporaries fill the 32
// registers. Each token's 8 (4) dependent dot products form one chain; chains of different tokens, or of following
// chunks when there is one token, overlap.
#include <immintrin.h>

#include "isa_kernels.h"

namespace moe {
namespace {

#include "lanes.inl"
#include "row_operators.inl"

// How far ahead weights are fetched: a few hundred cycles at the speed of memory.
constexpr int64_t kPrefetchBytes = 4096;

// Type of the values in a prepared row. Float inputs cost two multiply-adds where a pair of bf16 costs one dot product.
enum class Inputs { kBf16, kFloat };

inline __m512 dot_bf16(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

inline __m512i broadcast_pair(const uint8_t* x) {
  int32_t pair;
  __builtin_memcpy(&pair, x, 4);
  return _mm512_set1_epi32(pair);
}

// 16 e4m3 scales as floats times 2^-8: the bits of e4m3 in a half-precision number, exponent bias 15 instead of 7;
// subnormals too.
inline __m512 decode_e4m3_scales(const uint8_t* bytes) {
  const __m256i wide = _mm256_cvtepu8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
  const __m256i half =
      _mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(wide, 8), 1), _mm256_set1_epi16(static_cast<short>(0xbf80)));
  return _mm512_cvtph_ps(half);
}

// 2^(b-127): the byte is a float's exponent. Zero stands for 2^-127, which is subnormal.
inline __m512 decode_e8m0_scales(const uint8_t* bytes) {
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
  return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_slli_epi32(wide, 23), _mm512_set1_epi32(0x00400000)));
}

// The e2m1 values as bf16, twice: vpermw reads five bits of an index, and the fifth belongs to the next code.
inline __m512i e2m1_table() {
  const __m256i values = _mm256_setr_epi16(
      0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, static_cast<short>(0x8000),
      static_cast<short>(0xbf00), static_cast<short>(0xbf80), static_cast<short>(0xbfc0), static_cast<short>(0xc000),
      static_cast<short>(0xc040), static_cast<short>(0xc080), static_cast<short>(0xc0c0));
  return _mm512_broadcast_i64x4(values);
}

// 2 * e2m1 + 12 per code, so that the weight is an unsigned byte as vpdpbusd wants it.
inline __m512i e2m1_byte_table() {
  return _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
}

struct E4m3Tables {
  __m512i low[2];
  __m512i high[2];
};

// Both bytes of the bf16 of each e4m3 magnitude, for vpermi2b, which reads seven bits of an index.
const E4m3Tables& e4m3_tables() {
  static const E4m3Tables tables = [] {
    alignas(64) uint8_t low[128];
    alignas(64) uint8_t high[128];
    for (int code = 0; code < 128; ++code) {
      const int exponent = code >> 3;
      const float fraction = static_cast<float>(exponent == 0 ? code & 7 : 8 + (code & 7));
      const float value = fraction * float_of(static_cast<uint32_t>((exponent == 0 ? 1 : exponent) - 10 + 127) << 23);
      const uint32_t bits = code == 127 ? 0x7fc00000u : bits_of(value);
      low[code] = static_cast<uint8_t>(bits >> 16);
      high[code] = static_cast<uint8_t>(bits >> 24);
    }
    E4m3Tables t;
    for (int i = 0; i < 2; ++i) {
      t.low[i] = _mm512_load_si512(low + 64 * i);
      t.high[i] = _mm512_load_si512(high + 64 * i);
    }
    return t;
  }();
  return tables;
}

inline __m512 broadcast_float(const uint8_t* x) { return _mm512_castsi512_ps(broadcast_pair(x)); }

// Adds the products of one chunk to every token's sums. `w`: 8 registers of bf16 pairs; `x`: the chunk's first column.
template <int M, bool Scaled, Inputs I>
inline void multiply_chunk(const __m512i* w, __m512 scale, const uint8_t* const* rows, int64_t x, __m512* acc) {
  __m512 p[M];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) p[m] = _mm512_setzero_ps();
  if constexpr (I == Inputs::kBf16) {
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      const uint8_t* row = rows[m] + x * 2;
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) p[m] = dot_bf16(p[m], w[i], broadcast_pair(row + 4 * i));
    }
  } else {
    // A bf16 is the upper half of a float.
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(w[i], 16));
      const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(w[i], upper));
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const uint8_t* row = rows[m] + x * 4 + 8 * i;
        p[m] = _mm512_fmadd_ps(even, broadcast_float(row), p[m]);
        p[m] = _mm512_fmadd_ps(odd, broadcast_float(row + 4), p[m]);
      }
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) acc[m] = Scaled ? _mm512_fmadd_ps(p[m], scale, acc[m]) : _mm512_add_ps(acc[m], p[m]);
}

// 4-bit weights, into the first-level cache.
inline void prefetch(const uint8_t* data) {
  _mm_prefetch(reinterpret_cast<const char*>(data + kPrefetchBytes), _MM_HINT_T0);
}

// Wider weights come at twice the rate and more: they would take the first level's miss buffers from the inputs.
inline void prefetch_l2(const uint8_t* data) {
  _mm_prefetch(reinterpret_cast<const char*>(data + kPrefetchBytes), _MM_HINT_T1);
}

template <int M>
inline void store_sums(const __m512* acc, float* sums) {
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) _mm512_storeu_ps(sums + m * kTileRows, acc[m]);
}

inline void decode_fp4(const uint8_t* codes, __m512i table, __m512i* w) {
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    const __m512i packed = _mm512_load_si512(codes + v * kLine);
    w[4 * v] = _mm512_permutexvar_epi16(packed, table);
    w[4 * v + 1] = _mm512_permutexvar_epi16(_mm512_srli_epi32(packed, 4), table);
    w[4 * v + 2] = _mm512_permutexvar_epi16(_mm512_srli_epi32(packed, 8), table);
    w[4 * v + 3] = _mm512_permutexvar_epi16(_mm512_srli_epi32(packed, 12), table);
  }
}

// NVFP4 and MXFP4 weights.
template <WeightFormat F, Inputs I, int M>
void fp4_tile(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  constexpr int kChunks = static_cast<int>(block_columns(F)) / kChunkColumns;
  constexpr int kChunksPerScale = F == WeightFormat::kNvfp4 ? 1 : 2;
  const __m512i table = e2m1_table();
  __m512 acc[M];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) acc[m] = _mm512_setzero_ps();
  const uint8_t* block = args.tile;
  for (int64_t column = 0; column < args.columns; column += block_columns(F), block += block_bytes(F)) {
    prefetch(block);
    for (int c = 0; c < kChunks; ++c) {
      const uint8_t* codes = block + kLine + c * 2 * kLine;
      prefetch(codes);
      prefetch(codes + kLine);
      const uint8_t* bytes = block + c / kChunksPerScale * kTileRows;
      const __m512 scale = F == WeightFormat::kNvfp4 ? decode_e4m3_scales(bytes) : decode_e8m0_scales(bytes);
      __m512i w[8];
      decode_fp4(codes, table, w);
      multiply_chunk<M, true, I>(w, scale, rows, column + c * kChunkColumns, acc);
    }
  }
  store_sums<M>(acc, sums);
}

// NVFP4 weights and inputs in whole numbers: |sum of a group| <= 16 * 24 * 12, exact.
template <int M>
void nvfp4_integer_tile(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  const __m512i table = e2m1_byte_table();
  const __m512i nibble = _mm512_set1_epi8(15);
  const int64_t scales_offset = args.row->scales;
  const int64_t offsets_offset = args.row->offsets;
  __m512 acc[M];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) acc[m] = _mm512_setzero_ps();
  const uint8_t* block = args.tile;
  for (int64_t column = 0; column < args.columns; column += 64, block += block_bytes(WeightFormat::kNvfp4)) {
    prefetch(block);
    for (int c = 0; c < 4; ++c) {
      const uint8_t* codes = block + kLine + c * 2 * kLine;
      prefetch(codes);
      prefetch(codes + kLine);
      const __m512 weight_scale = decode_e4m3_scales(block + c * kTileRows);
      __m512i w[4];
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const __m512i packed = _mm512_load_si512(codes + v * kLine);
        w[2 * v] = _mm512_shuffle_epi8(table, _mm512_and_si512(packed, nibble));
        w[2 * v + 1] = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble));
      }
      const int64_t x = column + c * kChunkColumns;
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const uint8_t* row = rows[m] + x;
        // Scales and offsets hold four bytes per group of 16 columns.
        const uint8_t* group = rows[m] + x / 4;
        __m512i p = broadcast_pair(group + offsets_offset);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) p = _mm512_dpbusd_epi32(p, w[i], broadcast_pair(row + 4 * i));
        const __m512 input_scale = _mm512_castsi512_ps(broadcast_pair(group + scales_offset));
        acc[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(p), _mm512_mul_ps(weight_scale, input_scale), acc[m]);
      }
    }
  }
  store_sums<M>(acc, sums);
}

enum class Scaling { kNone, kWeights, kWeightsAndInput };

// e4m3 weights; e4m3 inputs are held exactly in bf16.
template <Scaling S, Inputs I, int M>
void fp8_tile(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  const E4m3Tables& tables = e4m3_tables();
  const __m512i low0 = tables.low[0], low1 = tables.low[1], high0 = tables.high[0], high1 = tables.high[1];
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  const int64_t scales_offset = args.row->scales;
  __m512 acc[M];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) acc[m] = _mm512_setzero_ps();
  const uint8_t* codes = args.tile;
  for (int64_t column = 0; column < args.columns; column += kChunkColumns, codes += 4 * kLine) {
    __m512i w[8];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      prefetch_l2(codes + v * kLine);
      const __m512i code = _mm512_load_si512(codes + v * kLine);
      const __m512i low = _mm512_permutex2var_epi8(low0, code, low1);
      // high | (code & sign)
      const __m512i high = _mm512_ternarylogic_epi32(_mm512_permutex2var_epi8(high0, code, high1), code, sign, 0xf8);
      w[2 * v] = _mm512_unpacklo_epi8(low, high);
      w[2 * v + 1] = _mm512_unpackhi_epi8(low, high);
    }
    if constexpr (S == Scaling::kNone) {
      multiply_chunk<M, false, I>(w, _mm512_setzero_ps(), rows, column, acc);
    } else if constexpr (S == Scaling::kWeights) {
      multiply_chunk<M, true, I>(w, _mm512_set1_ps(args.block_scales[column / 128]), rows, column, acc);
    } else {
      const float weight_scale = args.block_scales[column / 128];
      const int64_t group = column / 128 * 4;
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const uint8_t* row = rows[m] + column * 2;
        __m512 p = _mm512_setzero_ps();
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) p = dot_bf16(p, w[i], broadcast_pair(row + 4 * i));
        float input_scale;
        __builtin_memcpy(&input_scale, rows[m] + scales_offset + group, 4);
        acc[m] = _mm512_fmadd_ps(p, _mm512_set1_ps(weight_scale * input_scale), acc[m]);
      }
    }
  }
  store_sums<M>(acc, sums);
}

template <Inputs I, int M>
void bf16_tile(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  __m512 acc[M];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) acc[m] = _mm512_setzero_ps();
  const uint8_t* values = args.tile;
  for (int64_t column = 0; column < args.columns; column += kChunkColumns, values += 8 * kLine) {
    __m512i w[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      prefetch_l2(values + i * kLine);
      w[i] = _mm512_load_si512(values + i * kLine);
    }
    multiply_chunk<M, false, I>(w, _mm512_setzero_ps(), rows, column, acc);
  }
  store_sums<M>(acc, sums);
}

// f16 weights have more fraction bits than bf16: float inputs only.
template <int M>
void f16_tile(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  __m512 acc[M];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) acc[m] = _mm512_setzero_ps();
  const uint8_t* values = args.tile;
  for (int64_t column = 0; column < args.columns; column += kChunkColumns, values += 8 * kLine) {
    __m512 p[M];
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) p[m] = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int k = 0; k < kChunkColumns; ++k) {
      if (k % 2 == 0) prefetch_l2(values + k * 32);
      const __m512 w = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(values + k * 32)));
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        p[m] = _mm512_fmadd_ps(w, _mm512_castsi512_ps(broadcast_pair(rows[m] + (column + k) * 4)), p[m]);
      }
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) acc[m] = _mm512_add_ps(acc[m], p[m]);
  }
  store_sums<M>(acc, sums);
}

template <Inputs I, int M>
TileFn select_plain(WeightFormat format) {
  switch (format) {
    case WeightFormat::kNvfp4:
      return fp4_tile<WeightFormat::kNvfp4, I, M>;
    case WeightFormat::kMxfp4:
      return fp4_tile<WeightFormat::kMxfp4, I, M>;
    case WeightFormat::kFp8:
      return fp8_tile<Scaling::kNone, I, M>;
    case WeightFormat::kFp8Block128:
      return fp8_tile<Scaling::kWeights, I, M>;
    case WeightFormat::kBf16:
      return bf16_tile<I, M>;
    case WeightFormat::kF16:
      return I == Inputs::kFloat ? f16_tile<M> : nullptr;
  }
  return nullptr;
}

template <int M>
TileFn select(WeightFormat format, InputKind kind) {
  switch (kind) {
    case InputKind::kFloat:
      return select_plain<Inputs::kFloat, M>(format);
    case InputKind::kBf16:
      return select_plain<Inputs::kBf16, M>(format);
    case InputKind::kNvfp4:
      return format == WeightFormat::kNvfp4 ? nvfp4_integer_tile<M> : nullptr;
    case InputKind::kFp8Static:
    case InputKind::kFp8Token:
      return format == WeightFormat::kFp8 ? fp8_tile<Scaling::kNone, Inputs::kBf16, M> : nullptr;
    case InputKind::kFp8Group128:
      return format == WeightFormat::kFp8Block128 ? fp8_tile<Scaling::kWeightsAndInput, Inputs::kBf16, M> : nullptr;
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

Element element(WeightFormat, InputKind kind) {
  if (kind == InputKind::kNvfp4) return Element::kCode8;
  return kind == InputKind::kFloat ? Element::kF32 : Element::kBf16;
}

// e4m3 block scales are decoded 2^8 too small, and both factors of an integer product are doubled.
float sum_factor(WeightFormat format, InputKind kind) {
  if (format != WeightFormat::kNvfp4) return 1.0f;
  return kind == InputKind::kNvfp4 ? 64.0f : 256.0f;
}

}  // namespace

const IsaKernels& avx512_kernels() {
  static const IsaKernels kernels = {Isa::kAvx512, "avx512",        element, tile,  sum_factor,
                                     prepare_row,  quantize_record, gate_up, finish};
  return kernels;
}

}  // namespace moe
