// Tile functions for every processor: codes are decoded by table, products are made 16 rows at a time in the compiler's
// vector types.
#include "isa_kernels.h"

namespace moe {
namespace {

#include "lanes.inl"
#include "row_operators.inl"

constexpr float kE2m1[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                             -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

struct E4m3Table {
  float values[256];
};

const E4m3Table& e4m3_table() {
  static const E4m3Table table = [] {
    E4m3Table t;
    for (int code = 0; code < 256; ++code) {
      const int exponent = (code >> 3) & 15;
      const float fraction = static_cast<float>(exponent == 0 ? code & 7 : 8 + (code & 7));
      const float magnitude =
          fraction * float_of(static_cast<uint32_t>((exponent == 0 ? 1 : exponent) - 10 + 127) << 23);
      const float value = (code & 127) == 127 ? float_of(0x7fc00000u) : magnitude;
      t.values[code] = code < 128 ? value : -value;
    }
    return t;
  }();
  return table;
}

float e8m0_value(uint8_t code) { return float_of(code == 0 ? 0x00400000u : static_cast<uint32_t>(code) << 23); }

// Half precision to float, exactly.
float f16_value(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x0400) return float_of(sign | ((magnitude << 13) + (112u << 23)));
  return float_of(sign | bits_of(static_cast<float>(magnitude) * float_of((127u - 24u) << 23)));
}

// One chunk of a tile as floats, [column][row].
struct Chunk {
  alignas(64) float w[kChunkColumns][kTileRows];
};

void decode_fp4(const uint8_t* codes, Chunk& chunk) {
  for (int v = 0; v < 2; ++v) {
    for (int r = 0; r < kTileRows; ++r) {
      uint32_t lane;
      __builtin_memcpy(&lane, codes + v * kLine + r * 4, 4);
      for (int j = 0; j < 4; ++j) {
        chunk.w[8 * v + 2 * j][r] = kE2m1[(lane >> (4 * j)) & 15];
        chunk.w[8 * v + 2 * j + 1][r] = kE2m1[(lane >> (16 + 4 * j)) & 15];
      }
    }
  }
}

void decode_fp8(const uint8_t* codes, Chunk& chunk) {
  const float* values = e4m3_table().values;
  for (int v = 0; v < 4; ++v) {
    for (int r = 0; r < kTileRows; ++r) {
      const uint8_t* pair = codes + v * kLine + r / 4 * 16 + r % 4 * 2;
      chunk.w[4 * v][r] = values[pair[0]];
      chunk.w[4 * v + 1][r] = values[pair[1]];
      chunk.w[4 * v + 2][r] = values[pair[8]];
      chunk.w[4 * v + 3][r] = values[pair[9]];
    }
  }
}

void decode_bf16(const uint8_t* bytes, Chunk& chunk) {
  for (int i = 0; i < 8; ++i) {
    for (int r = 0; r < kTileRows; ++r) {
      uint32_t lane;
      __builtin_memcpy(&lane, bytes + i * kLine + r * 4, 4);
      chunk.w[2 * i][r] = float_of(lane << 16);
      chunk.w[2 * i + 1][r] = float_of(lane & 0xffff0000u);
    }
  }
}

void decode_f16(const uint8_t* bytes, Chunk& chunk) {
  for (int k = 0; k < kChunkColumns; ++k) {
    for (int r = 0; r < kTileRows; ++r) {
      uint16_t half;
      __builtin_memcpy(&half, bytes + k * 32 + r * 2, 2);
      chunk.w[k][r] = f16_value(half);
    }
  }
}

inline void multiply_chunk(const Chunk& chunk, const float* x, Lanes scale, float* sums) {
  Lanes partial = {};
  for (int k = 0; k < kChunkColumns; ++k) partial += load_lanes(chunk.w[k]) * x[k];
  store_lanes(load_lanes(sums) + partial * scale, sums);
}

template <WeightFormat F, InputKind K, int M>
void float_tile(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  for (int m = 0; m < M; ++m) store_lanes(Lanes{}, sums + m * kTileRows);
  Lanes scale = splat(1.0f);
  Chunk chunk;
  for (int64_t column = 0; column < args.columns; column += kChunkColumns) {
    const int64_t within = column % block_columns(F);
    const uint8_t* block = args.tile + column / block_columns(F) * block_bytes(F);
    if constexpr (is_fp4(F)) {
      decode_fp4(block + kLine + within / kChunkColumns * 2 * kLine, chunk);
      for (int r = 0; r < kTileRows; ++r) {
        scale[r] = F == WeightFormat::kNvfp4 ? e4m3_table().values[block[within / 16 * kTileRows + r]]
                                             : e8m0_value(block[within / 32 * kTileRows + r]);
      }
    } else if constexpr (F == WeightFormat::kBf16) {
      decode_bf16(block, chunk);
    } else if constexpr (F == WeightFormat::kF16) {
      decode_f16(block, chunk);
    } else {
      decode_fp8(block, chunk);
    }
    for (int m = 0; m < M; ++m) {
      if constexpr (F == WeightFormat::kFp8Block128) {
        float factor = args.block_scales[column / 128];
        if constexpr (K == InputKind::kFp8Group128)
          factor *= reinterpret_cast<const float*>(rows[m] + args.row->scales)[column / 128];
        scale = splat(factor);
      }
      multiply_chunk(chunk, reinterpret_cast<const float*>(rows[m]) + column, scale, sums + m * kTileRows);
    }
  }
}

template <int M>
void nvfp4_integer_tile(const TileArgs& args, const uint8_t* const* rows, float* sums) {
  // Whole numbers as the vector paths have them; as floats they are just as exact, and every processor multiplies
  // floats well.
  for (int m = 0; m < M; ++m) store_lanes(Lanes{}, sums + m * kTileRows);
  Chunk chunk;
  for (int64_t column = 0; column < args.columns; column += kChunkColumns) {
    const uint8_t* block = args.tile + column / 64 * block_bytes(WeightFormat::kNvfp4);
    const int64_t group = column % 64 / kChunkColumns;
    decode_fp4(block + kLine + group * 2 * kLine, chunk);
    Lanes weight_scale;
    for (int r = 0; r < kTileRows; ++r) weight_scale[r] = e4m3_table().values[block[group * kTileRows + r]];
    for (int m = 0; m < M; ++m) {
      const int8_t* codes = reinterpret_cast<const int8_t*>(rows[m]) + column;
      const float input_scale = reinterpret_cast<const float*>(rows[m] + args.row->scales)[column / 16];
      Lanes partial = {};
      for (int k = 0; k < kChunkColumns; ++k)
        partial += load_lanes(chunk.w[k]) * static_cast<float>(codes[(k & 8) + kNvfp4Place[k & 7]]);
      store_lanes(load_lanes(sums + m * kTileRows) + partial * (weight_scale * input_scale), sums + m * kTileRows);
    }
  }
}

template <int M>
TileFn select(WeightFormat format, InputKind kind) {
  const bool plain = kind == InputKind::kFloat;
  switch (format) {
    case WeightFormat::kNvfp4:
      if (kind == InputKind::kNvfp4) return nvfp4_integer_tile<M>;
      return plain ? float_tile<WeightFormat::kNvfp4, InputKind::kFloat, M> : nullptr;
    case WeightFormat::kMxfp4:
      return plain ? float_tile<WeightFormat::kMxfp4, InputKind::kFloat, M> : nullptr;
    case WeightFormat::kFp8:
      if (kind == InputKind::kNvfp4 || kind == InputKind::kFp8Group128) return nullptr;
      return float_tile<WeightFormat::kFp8, InputKind::kFloat, M>;
    case WeightFormat::kFp8Block128:
      if (kind == InputKind::kFp8Group128) return float_tile<WeightFormat::kFp8Block128, InputKind::kFp8Group128, M>;
      return plain ? float_tile<WeightFormat::kFp8Block128, InputKind::kFloat, M> : nullptr;
    case WeightFormat::kBf16:
      return plain ? float_tile<WeightFormat::kBf16, InputKind::kFloat, M> : nullptr;
    case WeightFormat::kF16:
      return plain ? float_tile<WeightFormat::kF16, InputKind::kFloat, M> : nullptr;
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

// Codes of inputs are doubled values.
float sum_factor(WeightFormat, InputKind kind) { return kind == InputKind::kNvfp4 ? 0.5f : 1.0f; }

}  // namespace

const IsaKernels& portable_kernels() {
  static const IsaKernels kernels = {Isa::kPortable, "portable",      element, tile,  sum_factor,
                                     prepare_row,    quantize_record, gate_up, finish};
  return kernels;
}

}  // namespace moe
