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

}  // namespace

void pack_tile(WeightFormat format, int64_t columns, const uint8_t* codes, const uint8_t* scale_codes,
               int64_t first_row, int64_t num_rows, uint8_t* tile) {
  for (int64_t r = 0; r < num_rows; ++r) {
    const int64_t row = first_row + r;
    if (is_fp4(format)) {
      const uint8_t* from = codes + row * (columns / 2);
      for (int64_t k = 0; k < columns; k += 8) {
        uint32_t word;
        std::memcpy(&word, from + k / 2, 4);
        word = spread_nibbles(word);
        std::memcpy(tile + fp4_lane(format, k, r), &word, 4);
      }
      const int64_t group = scale_group(format);
      for (int64_t k = 0; k < columns; k += group)
        tile[fp4_scale(format, k, r)] = scale_codes[row * (columns / group) + k / group];
    } else if (format == WeightFormat::kFp8 || format == WeightFormat::kFp8Block128) {
      const uint8_t* from = codes + row * columns;
      for (int64_t k = 0; k + 1 < columns; k += 2) std::memcpy(tile + fp8_pair(k, r), from + k, 2);
      if (columns % 2 != 0) tile[fp8_pair(columns - 1, r)] = from[columns - 1];
    } else if (format == WeightFormat::kBf16) {
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
