// Weights of one expert group or one linear in the layout `cpu/r16@1`, in one allocation.
#ifndef MOE_BACKEND_CPU_PACKED_WEIGHTS_H_
#define MOE_BACKEND_CPU_PACKED_WEIGHTS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "weight_format.h"

namespace moe {

// Zeroed memory, 64-byte aligned, in huge pages where the system gives them: decoding walks all of it for every token,
// and with pages of 4 KiB the walk is bound by address translation.
class Buffer {
 public:
  Buffer() = default;
  // Throws std::bad_alloc.
  explicit Buffer(size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

struct MatrixShape {
  WeightFormat format;
  int64_t rows;
  int64_t columns;
  bool has_bias;
};

// One logical matrix within the allocation.
struct Matrix {
  MatrixShape shape;
  int64_t num_tiles;
  uint8_t* tiles;
  // Bytes from one tile of this matrix to the next; gate and up alternate tile by tile.
  int64_t tile_stride;
  // [num_tiles * 16]: what the sum of a row is multiplied by, without the input's scale.
  float* factors;
  // [num_tiles * 16], or null.
  float* bias;
  // kFp8Block128: [ceil(rows/128), ceil(columns/128)], else null.
  float* block_scales;

  const uint8_t* tile(int64_t index) const { return tiles + index * tile_stride; }
  const float* tile_block_scales(int64_t index) const {
    return block_scales == nullptr ? nullptr : block_scales + index * kTileRows / 128 * ceil_div(shape.columns, 128);
  }
};

// The checkpoint's form of one matrix. Which pointers are set depends on the format.
struct MatrixSource {
  // 4 bits: [rows, columns/2], even column in the low nibble. 8 bits: [rows, columns]. 16 bits: [rows, columns]
  // little-endian.
  const uint8_t* codes = nullptr;
  // kNvfp4: [rows, columns/16] e4m3; kMxfp4: [rows, columns/32] e8m0.
  const uint8_t* scale_codes = nullptr;
  // kFp8Block128: [ceil(rows/128), ceil(columns/128)].
  const float* block_scales = nullptr;
  // [rows], or null: then `factor` holds for every row.
  const float* row_factors = nullptr;
  float factor = 1.0f;
  // [rows], or null.
  const float* bias = nullptr;
};

enum class PackResult : uint8_t {
  kOk,
  // A code or block scale is the format's NaN.
  kNanCode,
  // A float scale is NaN or infinite.
  kBadScale,
};

class PackedWeights {
 public:
  // Experts: matrices are gate, up, down of slot 0, then of slot 1, ...; gate and up are interleaved. Throws
  // std::bad_alloc.
  static std::shared_ptr<PackedWeights> for_experts(const MatrixShape& gate_up, const MatrixShape& down,
                                                    int64_t num_experts);
  // A linear: matrices are its modules in row order, each starting with a tile of its own. Throws std::bad_alloc.
  static std::shared_ptr<PackedWeights> for_modules(const std::vector<MatrixShape>& modules);

  const std::vector<Matrix>& matrices() const { return matrices_; }
  size_t bytes() const { return tiles_.size() + floats_.size(); }
  // All that packing fills: what is copied here from weights of the same shapes is packed.
  const Buffer& tiles() const { return tiles_; }
  const Buffer& floats() const { return floats_; }

  // Different matrices may be packed at the same time.
  PackResult pack(size_t index, const MatrixSource& source);
  // The inverse, bit for bit. Null pointers are skipped; sizes as in MatrixSource.
  void unpack(size_t index, uint8_t* codes, uint8_t* scale_codes) const;

 private:
  PackedWeights() = default;
  void allocate(const std::vector<MatrixShape>& shapes, bool experts);

  std::vector<Matrix> matrices_;
  Buffer tiles_;
  Buffer floats_;
};

}  // namespace moe

#endif  // MOE_BACKEND_CPU_PACKED_WEIGHTS_H_
