// NVFP4 weights and inputs for 64-bit ARM processors with the matrix instructions for bytes (FEAT_I8MM: Neoverse V1 and
// N2, Apple M2 and later). smmla multiplies eight codes of two rows by eight codes of two tokens into four sums: half
// the instructions that dot products take.
#include <arm_neon.h>

#include "isa_kernels.h"
#include "neon_tiles.h"

namespace moe {
namespace {

#include "neon_integer.inl"

constexpr int kBlockColumns = 64;
constexpr int kBlockChunks = kBlockColumns / kChunkColumns;

// Two tokens' part of a block of 64 columns, as smmla wants it; made once for all 16 rows.
struct PairedTokens {
  // Eight codes of the first token, then eight of the second.
  int8x16_t codes[kBlockChunks][2];
  // Scale of the first token, of the second, and both again.
  float32x4_t scales[kBlockChunks];
};

inline PairedTokens pair_up(const uint8_t* first, const uint8_t* second, int64_t scales, int64_t column) {
  PairedTokens pair;
  const auto load_codes = [&](const uint8_t* row, int c) {
    return vreinterpretq_s64_s8(vld1q_s8(reinterpret_cast<const int8_t*>(row) + column + c * kChunkColumns));
  };
  const auto load_scales = [&](const uint8_t* row) {
    return vld1q_f32(reinterpret_cast<const float*>(row + scales) + column / kChunkColumns);
  };
  for (int c = 0; c < kBlockChunks; ++c) {
    const int64x2_t a = load_codes(first, c);
    const int64x2_t b = load_codes(second, c);
    pair.codes[c][0] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
    pair.codes[c][1] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
  }
  const float32x4_t a = load_scales(first);
  const float32x4_t b = load_scales(second);
  const float64x2_t low = vreinterpretq_f64_f32(vzip1q_f32(a, b));
  const float64x2_t high = vreinterpretq_f64_f32(vzip2q_f32(a, b));
  pair.scales[0] = vreinterpretq_f32_f64(vdupq_laneq_f64(low, 0));
  pair.scales[1] = vreinterpretq_f32_f64(vdupq_laneq_f64(low, 1));
  pair.scales[2] = vreinterpretq_f32_f64(vdupq_laneq_f64(high, 0));
  pair.scales[3] = vreinterpretq_f32_f64(vdupq_laneq_f64(high, 1));
  return pair;
}

// Adds one block's products of four rows to the sums of all tokens. `block`: the weights; `row`: the first of the rows;
// sums[p][i]: rows 2i and 2i + 1 of the four times the tokens of pair p, [row][token].
template <int kPairs>
inline void add_block(const uint8_t* block, int row, const PairedTokens* pairs, float32x4_t (*sums)[2]) {
  float32x4_t acc[kPairs][2];
#pragma GCC unroll 6
  for (int p = 0; p < kPairs; ++p) {
    acc[p][0] = sums[p][0];
    acc[p][1] = sums[p][1];
  }
  for (int c = 0; c < kBlockChunks; ++c) {
    int8x16_t w[4];
    decode_codes(block + kLine + c * 2 * kLine + row * 4, w);
    const float32x4_t scales = decode_e4m3_scales(block + c * kTileRows + row);
    const float32x4_t row_scales[2] = {vzip1q_f32(scales, scales), vzip2q_f32(scales, scales)};
    // Per two rows: their first eight columns, their last eight.
    int8x16_t rows[2][2];
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const int32x4_t even = vreinterpretq_s32_s8(w[2 * v]);
      const int32x4_t odd = vreinterpretq_s32_s8(w[2 * v + 1]);
      rows[0][v] = vreinterpretq_s8_s32(vzip1q_s32(even, odd));
      rows[1][v] = vreinterpretq_s8_s32(vzip2q_s32(even, odd));
    }
#pragma GCC unroll 6
    for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        int32x4_t products = vmmlaq_s32(vdupq_n_s32(0), rows[i][0], pairs[p].codes[c][0]);
        products = vmmlaq_s32(products, rows[i][1], pairs[p].codes[c][1]);
        acc[p][i] = vfmaq_f32(acc[p][i], vcvtq_f32_s32(products), vmulq_f32(row_scales[i], pairs[p].scales[c]));
      }
    }
  }
#pragma GCC unroll 6
  for (int p = 0; p < kPairs; ++p) {
    sums[p][0] = acc[p][0];
    sums[p][1] = acc[p][1];
  }
}

// M > 1. The last of an odd number of tokens is its own partner.
template <int M>
void matrix_tile(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  constexpr int kPairs = (M + 1) / 2;
  float32x4_t acc[4][kPairs][2];
  for (int q = 0; q < 4; ++q) {
    for (int p = 0; p < kPairs; ++p) acc[q][p][0] = acc[q][p][1] = vdupq_n_f32(0);
  }
  const uint8_t* block = args.tile;
  for (int64_t column = 0; column < args.columns; column += kBlockColumns, block += block_bytes(WeightFormat::kNvfp4)) {
    PairedTokens pairs[kPairs];
    for (int p = 0; p < kPairs; ++p) {
      const int second = 2 * p + 1 < M ? 2 * p + 1 : 2 * p;
      pairs[p] = pair_up(rows[2 * p], rows[second], args.row->scales, column);
    }
    for (int q = 0; q < 4; ++q) add_block<kPairs>(block, 4 * q, pairs, acc[q]);
  }
  for (int q = 0; q < 4; ++q) {
    for (int m = 0; m < M; ++m) {
      const float32x4_t* pair = acc[q][m / 2];
      vst1q_f32(sums + m * kTileRows + 4 * q, m % 2 == 0 ? vuzp1q_f32(pair[0], pair[1]) : vuzp2q_f32(pair[0], pair[1]));
    }
  }
}

template <int M>
TileFn select(int num_tokens) {
  if constexpr (M > kMaxTileTokens) {
    return nullptr;
  } else {
    return num_tokens == M ? matrix_tile<M> : select<M + 1>(num_tokens);
  }
}

}  // namespace

// For a lone token half of the four sums would be for nothing.
TileFn neon_i8mm_tile(int num_tokens) { return num_tokens == 1 ? neon_dotprod_tile(1) : select<2>(num_tokens); }

}  // namespace moe
