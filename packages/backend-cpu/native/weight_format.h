// Weight formats and the packed layout `cpu/r16@1` that every kernel of this package reads.
//
// A matrix [rows, columns] is cut into tiles of 16 rows. A tile is contiguous and made of chunks of 16 columns, so that
// one output row is one lane of a 512-bit register and the sum over columns never crosses lanes:
//
// - 4 bits: a chunk is two 64-byte vectors of 16 rows x 8 columns. 32-bit lane r holds row r; its nibble j (0..3) is
// column 2j,
//   nibble 4+j is column 2j+1: shifting right by 4j leaves the codes of columns 2j and 2j+1 in the two 16-bit halves.
//   Chunks come in blocks of 64 columns (NVFP4) or 128 (MXFP4), each block led by one 64-byte line with its scales,
//   [group][16 rows].
// - 8 bits: a chunk is four 64-byte vectors of 16 rows x 4 columns. A 128-bit lane holds four rows: first their columns
// 0 and 1,
//   r0c0 r0c1 r1c0 r1c1 ..., then their columns 2 and 3, so that a byte unpack gives pairs of columns per row.
// - bf16: a chunk is eight 64-byte vectors; 32-bit lane r of vector i holds columns 2i and 2i+1 of row r.
// - f16: a chunk is sixteen 32-byte vectors, one column of 16 rows each.
//
// Rows beyond the matrix and columns beyond its end are zero, and so are their scales: they add exactly nothing.
#ifndef MOE_BACKEND_CPU_WEIGHT_FORMAT_H_
#define MOE_BACKEND_CPU_WEIGHT_FORMAT_H_

#include <cstdint>

namespace moe {

enum class WeightFormat : uint8_t {
  kNvfp4,        // e2m1, an e4m3 scale per 16 columns, a factor per row
  kMxfp4,        // e2m1, an e8m0 scale per 32 columns
  kFp8,          // e4m3, a factor per row
  kFp8Block128,  // e4m3, a factor per 128x128 block
  kBf16,
  kF16,
};

// How the input of a projection is represented before it meets the weights.
enum class InputKind : uint8_t {
  kFloat,        // as it is, f32
  kNvfp4,        // e2m1 codes in groups of 16 with e4m3 scales, one static global scale
  kFp8Static,    // e4m3 with a calibrated scale
  kFp8Token,     // e4m3 with a scale per row
  kFp8Group128,  // e4m3 with a scale per 128 columns
  kBf16,         // rounded to bf16; only where the processor multiplies it
};

// Type of one element of a prepared input row. e4m3 values are held exactly in either float type.
enum class Element : uint8_t { kBf16, kF32, kCode8 };

inline constexpr int kTileRows = 16;
inline constexpr int kChunkColumns = 16;
inline constexpr int kLine = 64;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

constexpr bool is_fp4(WeightFormat format) { return format == WeightFormat::kNvfp4 || format == WeightFormat::kMxfp4; }

// Columns that come as one unit in a tile.
constexpr int64_t block_columns(WeightFormat format) {
  if (format == WeightFormat::kNvfp4) return 64;
  if (format == WeightFormat::kMxfp4) return 128;
  return kChunkColumns;
}

constexpr int64_t padded_columns(WeightFormat format, int64_t columns) {
  return round_up(columns, block_columns(format));
}

// Bytes of the unit of block_columns() columns and 16 rows; scales included.
constexpr int64_t block_bytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::kNvfp4:
      return kLine + 64 * kTileRows / 2;
    case WeightFormat::kMxfp4:
      return kLine + 128 * kTileRows / 2;
    case WeightFormat::kFp8:
    case WeightFormat::kFp8Block128:
      return kChunkColumns * kTileRows;
    default:
      return kChunkColumns * kTileRows * 2;
  }
}

constexpr int64_t tile_bytes(WeightFormat format, int64_t columns) {
  return padded_columns(format, columns) / block_columns(format) * block_bytes(format);
}

}  // namespace moe

#endif  // MOE_BACKEND_CPU_WEIGHT_FORMAT_H_
