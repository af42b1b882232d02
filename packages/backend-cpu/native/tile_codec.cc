#include "tile_codec.h"

#include <cstring>

namespace moe {
namespace {

// Columns 0..7 of a row as eight nibbles, lowest first, to even columns in the low half and odd columns in the high
// half.
uint32_t spread_nibbles(uint32_t word) {
  // Two delta swaps gather the even nibbles in each 16 bits, a third exchanges the inner bytes.
  uint32_t swap = (word ^ (word >> 4)) & 0x00f000f0u;
  word ^= swap ^ (swap << 4);
  swap = (word ^ (word >> 8)) & 0x0000ff00u;
  return word ^ swap ^ (swap << 8);
}

// Each delta swap is its own inverse.
uint32_t gather_nibbles(uint32_t word) {
  uint32_t swap = (word ^ (word >> 8)) & 0x0000ff00u;
  word ^= swap ^ (swap << 8);
  swap = (word ^ (word >> 4)) & 0x00f000f0u;
  return word ^ swap ^ (swap << 4);
}

int64_t scale_group(WeightFormat format) { return format == WeightFormat::kNvfp4 ? 16 : 32; }

// Position of the 32-bit lane that holds columns [column, column + 8) of row `row` of a 4-bit tile.
int64_t fp4_lane(WeightFormat format, int64_t column, int64_t row) {
  return column / block_columns(format) * block_bytes(format) + kLine + column % block_columns(format) * 8 + row * 4;
}

int64_t fp4_scale(WeightFormat format, int64_t column, int64_t row) {
  return column / block_columns(format) * block_bytes(format) +
         column % block_columns(format) / scale_group(format) * kTileRows + row;
}

// Position of the byte pair (column, column + 1), column even, of an 8-bit tile.
int64_t fp8_pair(int64_t column, int64_t row) {
  return column / 4 * kLine + row / 4 * 16 + column % 4 / 2 * 8 + row % 4 * 2;
}

int64_t bf16_pair(int64_t column, int64_t row) { return column / 2 * kLine + row * 4; }

int64_t f16_value(int64_t column, int64_t row) { return column * 32 + row * 2; }

// One block of 4-bit codes with its scales. Spreading the nibbles of a row is the same for all its words, so the
// compiler does several at once; then the words of 16 rows go to their lanes, and so do the scales. Sizes are constants:
// whole blocks are nearly all of a model, and this loop is what a start waits for.
template <int64_t kWords, int64_t kScales>
void pack_fp4_block(const uint8_t* codes, int64_t row_bytes, const uint8_t* scale_codes, int64_t row_scales,
                    int64_t num_rows, uint8_t* block) {
  uint32_t spread[kTileRows][kWords];
  uint8_t scales[kTileRows][kScales];
  for (int64_t r = 0; r < num_rows; ++r) {
    std::memcpy(spread[r], codes + r * row_bytes, sizeof(spread[r]));
    std::memcpy(scales[r], scale_codes + r * row_scales, sizeof(scales[r]));
    for (int64_t w = 0; w < kWords; ++w) spread[r][w] = spread_nibbles(spread[r][w]);
  }
  for (int64_t r = num_rows; r < kTileRows; ++r) {
    std::memset(spread[r], 0, sizeof(spread[r]));
    std::memset(scales[r], 0, sizeof(scales[r]));
  }
  for (int64_t s = 0; s < kScales; ++s) {
    for (int64_t r = 0; r < kTileRows; ++r) block[s * kTileRows + r] = scales[r][s];
  }
  for (int64_t w = 0; w < kWords; ++w) {
    uint32_t line[kTileRows];
    for (int64_t r = 0; r < kTileRows; ++r) line[r] = spread[r][w];
    std::memcpy(block + kLine + w * kLine, line, kLine);
  }
}

void pack_fp4(WeightFormat format, int64_t columns, const uint8_t* codes, const uint8_t* scale_codes, int64_t num_rows,
              uint8_t* tile) {
  const int64_t group = scale_group(format);
  const int64_t block = block_columns(format);
  const auto pack_block = format == WeightFormat::kNvfp4 ? pack_fp4_block<8, 4> : pack_fp4_block<16, 4>;
  const int64_t whole = columns / block * block;
  for (int64_t k = 0; k < whole; k += block) {
    pack_block(codes + k / 2, columns / 2, scale_codes + k / group, columns / group, num_rows,
               tile + k / block * block_bytes(format));
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t k = whole; k < columns; k += 8) {
      uint32_t word;
      std::memcpy(&word, codes + r * (columns / 2) + k / 2, 4);
      word = spread_nibbles(word);
      std::memcpy(tile + fp4_lane(format, k, r), &word, 4);
    }
    for (int64_t k = whole; k < columns; k += group)
      tile[fp4_scale(format, k, r)] = scale_codes[r * (columns / group) + k / group];
  }
}

// Rows of 8-bit codes, four rows by four columns at a time where there are as many.
void pack_fp8(int64_t columns, const uint8_t* codes, int64_t num_rows, uint8_t* tile) {
  const int64_t whole = columns / 4 * 4;
  int64_t r = 0;
  for (; r + 4 <= num_rows; r += 4) {
    for (int64_t k = 0; k < whole; k += 4) {
      uint64_t first = 0;
      uint64_t second = 0;
      for (int64_t i = 0; i < 4; ++i) {
        uint32_t word;
        std::memcpy(&word, codes + (r + i) * columns + k, 4);
        first |= static_cast<uint64_t>(word & 0xffffu) << (16 * i);
        second |= static_cast<uint64_t>(word >> 16) << (16 * i);
      }
      std::memcpy(tile + fp8_pair(k, r), &first, 8);
      std::memcpy(tile + fp8_pair(k + 2, r), &second, 8);
    }
  }
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t k = row < r ? whole : 0; k < columns; ++k)
      tile[fp8_pair(k & ~int64_t{1}, row) + (k & 1)] = codes[row * columns + k];
  }
}

}  // namespace

void pack_tile(WeightFormat format, int64_t columns, const uint8_t* codes, const uint8_t* scale_codes,
               int64_t first_row, int64_t num_rows, uint8_t* tile) {
  if (is_fp4(format)) {
    const int64_t row_scales = columns / scale_group(format);
    pack_fp4(format, columns, codes + first_row * (columns / 2), scale_codes + first_row * row_scales, num_rows, tile);
    return;
  }
  if (format == WeightFormat::kFp8 || format == WeightFormat::kFp8Block128) {
    pack_fp8(columns, codes + first_row * columns, num_rows, tile);
    return;
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    const int64_t row = first_row + r;
    if (format == WeightFormat::kBf16) {
      const uint8_t* from = codes + row * columns * 2;
      for (int64_t k = 0; k + 1 < columns; k += 2) std::memcpy(tile + bf16_pair(k, r), from + k * 2, 4);
      if (columns % 2 != 0) std::memcpy(tile + bf16_pair(columns - 1, r), from + (columns - 1) * 2, 2);
    } else {
      const uint8_t* from = codes + row * columns * 2;
      for (int64_t k = 0; k < columns; ++k) std::memcpy(tile + f16_value(k, r), from + k * 2, 2);
    }
  }
}

void unpack_tile(WeightFormat format, int64_t columns, const uint8_t* tile, int64_t first_row, int64_t num_rows,
                 uint8_t* codes, uint8_t* scale_codes) {
  for (int64_t r = 0; r < num_rows; ++r) {
    const int64_t row = first_row + r;
    if (is_fp4(format)) {
      const int64_t group = scale_group(format);
      for (int64_t k = 0; k < columns && codes != nullptr; k += 8) {
        uint32_t word;
        std::memcpy(&word, tile + fp4_lane(format, k, r), 4);
        word = gather_nibbles(word);
        std::memcpy(codes + row * (columns / 2) + k / 2, &word, 4);
      }
      for (int64_t k = 0; k < columns && scale_codes != nullptr; k += group) {
        scale_codes[row * (columns / group) + k / group] = tile[fp4_scale(format, k, r)];
      }
    } else if (codes == nullptr) {
      continue;
    } else if (format == WeightFormat::kFp8 || format == WeightFormat::kFp8Block128) {
      for (int64_t k = 0; k < columns; ++k) codes[row * columns + k] = tile[fp8_pair(k & ~int64_t{1}, r) + (k & 1)];
    } else if (format == WeightFormat::kBf16) {
      for (int64_t k = 0; k < columns; ++k)
        std::memcpy(codes + (row * columns + k) * 2, tile + bf16_pair(k & ~int64_t{1}, r) + (k & 1) * 2, 2);
    } else {
      for (int64_t k = 0; k < columns; ++k) std::memcpy(codes + (row * columns + k) * 2, tile + f16_value(k, r), 2);
    }
  }
}

}  // namespace moe
