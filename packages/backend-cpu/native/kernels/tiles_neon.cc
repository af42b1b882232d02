// Tile functions for every 64-bit ARM processor.
//
// A register holds one column of four rows. Four- and eight-bit codes become half-precision numbers by byte operations,
// and fcvtl, which needs no extension, makes floats of them; a token's column is taken from its place in a register,
// so that nothing is broadcast. With one or two tokens a tile is walked once, all 16 rows at a time; with more it is
// walked four times, four rows at a time, which leaves the registers to the tokens. No sum depends on which.
#include <arm_neon.h>

#include "isa_kernels.h"
#include "neon_tiles.h"

namespace moe {
namespace {

#include "lanes.inl"
#include "neon_integer.inl"
#include "row_operators.inl"

// Decoders. `columns` makes floats of 8 columns of four rows, in ascending order; `data` is where the four rows of the
// chunk lie, `half` which 8 of its 16 columns. `scale` gives the factor of the chunk for each row.

inline float32x4_t low_floats(uint16x8_t halves) { return vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(halves))); }
inline float32x4_t high_floats(uint16x8_t halves) { return vcvt_high_f32_f16(vreinterpretq_f16_u16(halves)); }

// From four bytes of four rows each to four rows of each byte.
inline uint8x16_t bytes_by_column(uint8x16_t rows) {
  const uint8_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  return vqtbl1q_u8(rows, vld1q_u8(order));
}

template <WeightFormat F>
struct Fp4 {
  static constexpr bool kScaled = true;
  static inline const uint8_t* data(const TileArgs& args, int64_t column, int row) {
    return args.tile + column / block_columns(F) * block_bytes(F) + kLine + column % block_columns(F) * 8 + row * 4;
  }
  static inline void columns(const uint8_t* data, int half, float32x4_t* w) {
    // The high bytes of the e2m1 values in half precision; the low bytes are zero.
    const uint8_t high_bytes[16] = {0x00, 0x38, 0x3c, 0x3e, 0x40, 0x42, 0x44, 0x46,
                                    0x80, 0xb8, 0xbc, 0xbe, 0xc0, 0xc2, 0xc4, 0xc6};
    const uint8x16_t table = vld1q_u8(high_bytes);
    const uint8x16_t packed = bytes_by_column(vld1q_u8(data + half * kLine));
    // Columns 0 4 1 5 and 2 6 3 7, four rows each.
    const uint8x16_t first = vqtbl1q_u8(table, vandq_u8(packed, vdupq_n_u8(15)));
    const uint8x16_t second = vqtbl1q_u8(table, vshrq_n_u8(packed, 4));
    place(first, w);
    place(second, w + 2);
  }
  static inline float32x4_t scale(const TileArgs& args, int64_t column, int row) {
    const uint8_t* block = args.tile + column / block_columns(F) * block_bytes(F) + row;
    const int64_t within = column % block_columns(F);
    if constexpr (F == WeightFormat::kNvfp4) {
      return decode_e4m3_scales(block + within / 16 * kTileRows);
    } else {
      // 2^(b-127): the byte is a float's exponent. Zero stands for 2^-127, which is subnormal.
      uint32_t four;
      __builtin_memcpy(&four, block + within / 32 * kTileRows, 4);
      const uint32x4_t wide = vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
      return vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32(wide, 23), vdupq_n_u32(0x00400000)));
    }
  }

 private:
  static inline void place(uint8x16_t bytes, float32x4_t* w) {
    const uint8x16_t zero = vdupq_n_u8(0);
    const uint16x8_t low = vreinterpretq_u16_u8(vzip1q_u8(zero, bytes));
    const uint16x8_t high = vreinterpretq_u16_u8(vzip2q_u8(zero, bytes));
    w[0] = low_floats(low);
    w[4] = high_floats(low);
    w[1] = low_floats(high);
    w[5] = high_floats(high);
  }
};

// e4m3 bits as half-precision bits: values times 2^-8, as decode_e4m3_scales has them.
template <bool Blocks>
struct Fp8 {
  static constexpr bool kScaled = Blocks;
  static inline const uint8_t* data(const TileArgs& args, int64_t column, int row) {
    return args.tile + column * kTileRows + row * 4;
  }
  static inline void columns(const uint8_t* data, int half, float32x4_t* w) {
    const uint16x8_t no_second_sign = vdupq_n_u16(0xbfff);
    // Pairs of columns of four rows, then the next pairs.
    const uint8_t order[16] = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
    const uint8x16_t by_column = vld1q_u8(order);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const uint8x16_t loaded = vld1q_u8(data + (2 * half + v) * kLine);
      const int8x16_t codes = vreinterpretq_s8_u8(vqtbl1q_u8(loaded, by_column));
      const uint16x8_t low = vreinterpretq_u16_s16(vshll_n_s8(vget_low_s8(codes), 7));
      const uint16x8_t high = vreinterpretq_u16_s16(vshll_high_n_s8(codes, 7));
      w[4 * v] = low_floats(vandq_u16(low, no_second_sign));
      w[4 * v + 1] = high_floats(vandq_u16(low, no_second_sign));
      w[4 * v + 2] = low_floats(vandq_u16(high, no_second_sign));
      w[4 * v + 3] = high_floats(vandq_u16(high, no_second_sign));
    }
  }
  static inline float32x4_t scale(const TileArgs& args, int64_t column, int) {
    return vdupq_n_f32(args.block_scales[column / 128]);
  }
};

struct Bf16 {
  static constexpr bool kScaled = false;
  static inline const uint8_t* data(const TileArgs& args, int64_t column, int row) {
    return args.tile + column * 32 + row * 4;
  }
  static inline void columns(const uint8_t* data, int half, float32x4_t* w) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const uint32x4_t pairs = vreinterpretq_u32_u8(vld1q_u8(data + (4 * half + i) * kLine));
      w[2 * i] = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
      w[2 * i + 1] = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
    }
  }
};

struct F16 {
  static constexpr bool kScaled = false;
  static inline const uint8_t* data(const TileArgs& args, int64_t column, int row) {
    return args.tile + column * 32 + row * 2;
  }
  static inline void columns(const uint8_t* data, int half, float32x4_t* w) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) w[k] = vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(data + (8 * half + k) * 32)));
  }
};

// Adds the products of eight decoded columns, ascending, to the partial sums of M tokens.
template <int M>
inline void multiply_columns(const float32x4_t* w, const float* const* x, int64_t column, float32x4_t* partial) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const float32x4_t four = vld1q_f32(x[m] + column + 4 * i);
      partial[m] = vfmaq_laneq_f32(partial[m], w[4 * i], four, 0);
      partial[m] = vfmaq_laneq_f32(partial[m], w[4 * i + 1], four, 1);
      partial[m] = vfmaq_laneq_f32(partial[m], w[4 * i + 2], four, 2);
      partial[m] = vfmaq_laneq_f32(partial[m], w[4 * i + 3], four, 3);
    }
  }
}

template <typename Decoder, bool InputScaled, int M>
void float_rows(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  constexpr int kQuarters = M <= 2 ? 4 : 1;
  const float* x[M];
  for (int m = 0; m < M; ++m) x[m] = reinterpret_cast<const float*>(rows[m]);
  for (int first = 0; first < 4; first += kQuarters) {
    float32x4_t acc[kQuarters][M];
    for (int q = 0; q < kQuarters; ++q) {
      for (int m = 0; m < M; ++m) acc[q][m] = vdupq_n_f32(0);
    }
    for (int64_t column = 0; column < args.columns; column += kChunkColumns) {
#pragma GCC unroll 4
      for (int q = 0; q < kQuarters; ++q) {
        const int row = 4 * (first + q);
        const uint8_t* data = Decoder::data(args, column, row);
        float32x4_t partial[M];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) partial[m] = vdupq_n_f32(0);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          float32x4_t w[8];
          Decoder::columns(data, half, w);
          multiply_columns<M>(w, x, column + 8 * half, partial);
        }
        if constexpr (!Decoder::kScaled) {
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m) acc[q][m] = vaddq_f32(acc[q][m], partial[m]);
        } else {
          const float32x4_t weight_scale = Decoder::scale(args, column, row);
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m) {
            float32x4_t factor = weight_scale;
            if constexpr (InputScaled) {
              factor = vmulq_n_f32(factor, reinterpret_cast<const float*>(rows[m] + args.row->scales)[column / 128]);
            }
            acc[q][m] = vfmaq_f32(acc[q][m], partial[m], factor);
          }
        }
      }
    }
    for (int q = 0; q < kQuarters; ++q) {
      for (int m = 0; m < M; ++m) vst1q_f32(sums + m * kTileRows + 4 * (first + q), acc[q][m]);
    }
  }
}

// Eight decoded columns, and a sum and a partial sum for each of eight tokens, fill the registers.
constexpr int kTokensAtOnce = 8;

template <typename Decoder, bool InputScaled, int M>
void float_tile(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  constexpr int kFirst = M < kTokensAtOnce ? M : kTokensAtOnce;
  float_rows<Decoder, InputScaled, kFirst>(args, rows, sums);
  if constexpr (M > kFirst) {
    float_tile<Decoder, InputScaled, M - kFirst>(args, rows + kFirst, sums + kFirst * kTileRows);
  }
}

// For processors without dot products: four products of bytes fit 16 bits, 4 * 144.
struct Widening {
  static inline int32x4_t chunk(const int8x16_t* w, int8x16_t x) {
    const int32x4_t words = vreinterpretq_s32_s8(x);
    int8x16_t word = vreinterpretq_s8_s32(vdupq_laneq_s32(words, 0));
    int16x8_t low = vmull_s8(vget_low_s8(w[0]), vget_low_s8(word));
    int16x8_t high = vmull_high_s8(w[0], word);
    const auto add = [&](int8x16_t four, int32x4_t same) {
      word = vreinterpretq_s8_s32(same);
      low = vmlal_s8(low, vget_low_s8(four), vget_low_s8(word));
      high = vmlal_high_s8(high, four, word);
    };
    add(w[1], vdupq_laneq_s32(words, 1));
    add(w[2], vdupq_laneq_s32(words, 2));
    add(w[3], vdupq_laneq_s32(words, 3));
    return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
  }
};

template <int M>
TileFn select(WeightFormat format, InputKind kind) {
  const bool plain = kind == InputKind::kFloat;
  switch (format) {
    case WeightFormat::kNvfp4:
      if (kind == InputKind::kNvfp4) return nvfp4_integer_tile<Widening, M>;
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

// The table's tile function where whole numbers are multiplied by `Integers`.
template <TileFn (*Integers)(int num_tokens)>
TileFn tile_with(WeightFormat format, InputKind kind, int num_tokens) {
  const bool whole_numbers = format == WeightFormat::kNvfp4 && kind == InputKind::kNvfp4;
  return whole_numbers ? Integers(num_tokens) : tile(format, kind, num_tokens);
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

const IsaKernels& neon_kernels(NeonDot dot) {
  const auto kernels = [](const char* name, decltype(IsaKernels::tile) tile_function) {
    return IsaKernels{Isa::kNeon,      name,    element, tile_function, sum_factor, prepare_row,
                      quantize_record, gate_up, finish};
  };
  static const IsaKernels tables[] = {kernels("neon", tile), kernels("neon with dotprod", tile_with<neon_dotprod_tile>),
                                      kernels("neon with i8mm", tile_with<neon_i8mm_tile>)};
  return tables[static_cast<int>(dot)];
}

}  // namespace moe
