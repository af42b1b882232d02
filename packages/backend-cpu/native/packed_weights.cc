#include "packed_weights.h"

#include <sys/mman.h>

#include <cmath>
#include <cstring>
#include <new>
#include <utility>

#include "tile_codec.h"

namespace moe {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t allocation_bytes(size_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

bool has_nan_e4m3(const uint8_t* codes, int64_t count) {
  uint32_t found = 0;
  for (int64_t i = 0; i < count; ++i) found |= (codes[i] & 0x7f) == 0x7f;
  return found != 0;
}

bool has_byte(const uint8_t* codes, int64_t count, uint8_t byte) {
  return count > 0 && std::memchr(codes, byte, static_cast<size_t>(count)) != nullptr;
}

bool all_finite(const float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(values[i])) return false;
  }
  return true;
}

bool has_nan_code(const MatrixShape& shape, const MatrixSource& source) {
  const int64_t count = shape.rows * shape.columns;
  switch (shape.format) {
    case WeightFormat::kNvfp4:
      return has_nan_e4m3(source.scale_codes, count / 16);
    case WeightFormat::kMxfp4:
      return has_byte(source.scale_codes, count / 32, 0xff);
    case WeightFormat::kFp8:
    case WeightFormat::kFp8Block128:
      return has_nan_e4m3(source.codes, count);
    default:
      return false;
  }
}

int64_t num_block_scales(const MatrixShape& shape) {
  return shape.format == WeightFormat::kFp8Block128 ? ceil_div(shape.rows, 128) * ceil_div(shape.columns, 128) : 0;
}

}  // namespace

Buffer::Buffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  // Whole huge pages from an anonymous mapping; small ones share nothing worth saving and come from the heap.
  if (bytes < kHugePage) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kLine, bytes) != 0) throw std::bad_alloc();
    std::memset(memory, 0, bytes);
    data_ = static_cast<uint8_t*>(memory);
    return;
  }
  // One huge page more, so that the start can be aligned; what is left over on both sides goes back.
  const size_t wanted = allocation_bytes(bytes);
  void* memory = mmap(nullptr, wanted + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  auto address = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t aligned = (address + kHugePage - 1) / kHugePage * kHugePage;
  if (aligned > address) munmap(memory, aligned - address);
  const uintptr_t end = address + wanted + kHugePage;
  if (end > aligned + wanted) munmap(reinterpret_cast<void*>(aligned + wanted), end - aligned - wanted);
  data_ = reinterpret_cast<uint8_t*>(aligned);
#ifdef MADV_HUGEPAGE
  madvise(data_, wanted, MADV_HUGEPAGE);
#endif
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (size_ < kHugePage) {
    free(data_);
  } else {
    munmap(data_, allocation_bytes(size_));
  }
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void PackedWeights::allocate(const std::vector<MatrixShape>& shapes, bool experts) {
  size_t tile_total = 0;
  size_t float_total = 0;
  for (const MatrixShape& shape : shapes) {
    const int64_t tiles = ceil_div(shape.rows, kTileRows);
    tile_total += static_cast<size_t>(tiles * tile_bytes(shape.format, shape.columns));
    float_total += static_cast<size_t>(tiles * kTileRows * (shape.has_bias ? 2 : 1) + num_block_scales(shape));
  }
  tiles_ = Buffer(tile_total);
  floats_ = Buffer(float_total * sizeof(float));
  uint8_t* tile = tiles_.data();
  float* number = reinterpret_cast<float*>(floats_.data());
  const auto take = [&number](int64_t count) {
    float* taken = count == 0 ? nullptr : number;
    number += count;
    return taken;
  };
  matrices_.reserve(shapes.size());
  for (size_t i = 0; i < shapes.size(); ++i) {
    const MatrixShape& shape = shapes[i];
    const int64_t bytes = tile_bytes(shape.format, shape.columns);
    Matrix matrix{};
    matrix.shape = shape;
    matrix.num_tiles = ceil_div(shape.rows, kTileRows);
    const bool interleaved = experts && i % 3 < 2;
    matrix.tile_stride = interleaved ? 2 * bytes : bytes;
    matrix.tiles = tile + (interleaved && i % 3 == 1 ? bytes : 0);
    if (!interleaved) tile += matrix.num_tiles * bytes;
    if (interleaved && i % 3 == 1) tile += 2 * matrix.num_tiles * bytes;
    matrix.factors = take(matrix.num_tiles * kTileRows);
    matrix.bias = shape.has_bias ? take(matrix.num_tiles * kTileRows) : nullptr;
    matrix.block_scales = take(num_block_scales(shape));
    matrices_.push_back(matrix);
  }
}

std::shared_ptr<PackedWeights> PackedWeights::for_experts(const MatrixShape& gate_up, const MatrixShape& down,
                                                          int64_t num_experts) {
  std::vector<MatrixShape> shapes;
  shapes.reserve(static_cast<size_t>(num_experts) * 3);
  for (int64_t slot = 0; slot < num_experts; ++slot) {
    shapes.push_back(gate_up);
    shapes.push_back(gate_up);
    shapes.push_back(down);
  }
  std::shared_ptr<PackedWeights> weights(new PackedWeights());
  weights->allocate(shapes, true);
  return weights;
}

std::shared_ptr<PackedWeights> PackedWeights::for_modules(const std::vector<MatrixShape>& modules) {
  std::shared_ptr<PackedWeights> weights(new PackedWeights());
  weights->allocate(modules, false);
  return weights;
}

PackResult PackedWeights::pack(size_t index, const MatrixSource& source) {
  const Matrix& matrix = matrices_[index];
  const MatrixShape& shape = matrix.shape;
  if (has_nan_code(shape, source)) return PackResult::kNanCode;
  if (!std::isfinite(source.factor) || (source.row_factors != nullptr && !all_finite(source.row_factors, shape.rows)) ||
      (matrix.block_scales != nullptr && !all_finite(source.block_scales, num_block_scales(shape)))) {
    return PackResult::kBadScale;
  }
  for (int64_t t = 0; t < matrix.num_tiles; ++t) {
    const int64_t first = t * kTileRows;
    const int64_t count = shape.rows - first < kTileRows ? shape.rows - first : kTileRows;
    pack_tile(shape.format, shape.columns, source.codes, source.scale_codes, first, count,
              matrix.tiles + t * matrix.tile_stride);
  }
  for (int64_t r = 0; r < shape.rows; ++r)
    matrix.factors[r] = source.row_factors == nullptr ? source.factor : source.row_factors[r];
  if (matrix.bias != nullptr) std::memcpy(matrix.bias, source.bias, static_cast<size_t>(shape.rows) * sizeof(float));
  if (matrix.block_scales != nullptr) {
    std::memcpy(matrix.block_scales, source.block_scales, static_cast<size_t>(num_block_scales(shape)) * sizeof(float));
  }
  return PackResult::kOk;
}

void PackedWeights::unpack(size_t index, uint8_t* codes, uint8_t* scale_codes) const {
  const Matrix& matrix = matrices_[index];
  for (int64_t t = 0; t < matrix.num_tiles; ++t) {
    const int64_t first = t * kTileRows;
    const int64_t count = matrix.shape.rows - first < kTileRows ? matrix.shape.rows - first : kTileRows;
    unpack_tile(matrix.shape.format, matrix.shape.columns, matrix.tile(t), first, count, codes, scale_codes);
  }
}

}  // namespace moe
