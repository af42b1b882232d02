#include "linear_kernel.h"

#include <algorithm>
#include <utility>

#include "moe/status.hpp"
#include "work_split.h"

namespace moe {
namespace {

// One tile of the output, found without searching while a kernel runs.
struct TileRef {
  int32_t module;
  int32_t tile;
  // Column of the output where the tile starts, and how many of its 16 rows exist.
  int32_t first_output;
  int32_t num_rows;
};

class LinearKernel {
 public:
  explicit LinearKernel(LinearConfig config) : config_(std::move(config)) {
    const std::vector<Matrix>& matrices = config_.weights->matrices();
    const WeightFormat format = matrices.front().shape.format;
    columns_ = matrices.front().shape.columns;
    row_ = make_row_layout(config_.input, config_.isa->element(format, config_.input), columns_);
    for (int m = 1; m <= kMaxTileTokens; ++m) tile_fns_[m] = config_.isa->tile(format, config_.input, m);
    sum_factor_ = config_.isa->sum_factor(format, config_.input);
    int64_t output = 0;
    for (size_t i = 0; i < matrices.size(); ++i) {
      const Matrix& matrix = matrices[i];
      for (int64_t t = 0; t < matrix.num_tiles; ++t) {
        const int64_t rows = std::min<int64_t>(kTileRows, matrix.shape.rows - t * kTileRows);
        tiles_.push_back({static_cast<int32_t>(i), static_cast<int32_t>(t),
                          static_cast<int32_t>(output + t * kTileRows), static_cast<int32_t>(rows)});
      }
      output += matrix.shape.rows;
      variants_.push_back(variant_for(config_.input_scales.empty() ? 1.0f : config_.input_scales[i]));
    }
    out_features_ = output;
    tile_bytes_ = tile_bytes(format, columns_);
  }

  const char* name() const { return config_.name.c_str(); }

  uint64_t workspace_bytes(int64_t num_tokens) const {
    Carver carver(nullptr);
    carver.take<uint8_t>(num_records(num_tokens) * row_.bytes);
    return carver.used();
  }

  int32_t run(const moe_linear_args& args, const moe_exec& exec, moe_error* error) const {
    if (args.input_dtype != MOE_F32) return fail(error, MOE_INVALID_ARGUMENT, "%s: inputs must be float32", name());
    if (args.in_features != columns_ || args.out_features != out_features_) {
      return fail(error, MOE_INVALID_ARGUMENT, "%s: built for [%lld, %lld], called with [%d, %d]", name(),
                  static_cast<long long>(out_features_), static_cast<long long>(columns_), args.out_features,
                  args.in_features);
    }
    if (args.num_tokens <= 0) return MOE_OK;
    if (exec.workspace == nullptr || exec.workspace_bytes < workspace_bytes(args.num_tokens)) {
      return fail(error, MOE_INVALID_ARGUMENT, "%s: the workspace has %llu bytes, %lld tokens need %llu", name(),
                  static_cast<unsigned long long>(exec.workspace_bytes), static_cast<long long>(args.num_tokens),
                  static_cast<unsigned long long>(workspace_bytes(args.num_tokens)));
    }
    auto* records = static_cast<uint8_t*>(exec.workspace);
    prepare(args, exec.pool, records);
    const double products = static_cast<double>(kTileRows * columns_) * static_cast<double>(args.num_tokens);
    auto body = [&](int64_t begin, int64_t end, uint32_t) { run_tiles(args, records, begin, end); };
    parallel_for(exec.pool, static_cast<int64_t>(tiles_.size()), grain_for(static_cast<double>(tile_bytes_), products),
                 body);
    return MOE_OK;
  }

 private:
  // Modules whose static input scales are equal share one quantized copy of the input.
  int32_t variant_for(float scale) {
    for (size_t i = 0; i < variant_scales_.size(); ++i) {
      if (variant_scales_[i] == scale) return static_cast<int32_t>(i);
    }
    variant_scales_.push_back(scale);
    return static_cast<int32_t>(variant_scales_.size() - 1);
  }

  int64_t num_records(int64_t num_tokens) const { return num_tokens * static_cast<int64_t>(variant_scales_.size()); }

  void prepare(const moe_linear_args& args, const moe_pool* pool, uint8_t* records) const {
    const auto* input = static_cast<const float*>(args.input);
    auto body = [&](int64_t begin, int64_t end, uint32_t) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t token = i % args.num_tokens;
        config_.isa->prepare_row(input + token * args.input_stride, row_,
                                 variant_scales_[static_cast<size_t>(i / args.num_tokens)], records + i * row_.bytes);
      }
    };
    // Four bytes read per element, about two operations per byte: a lone token is not worth waking anybody.
    const double elements = static_cast<double>(columns_);
    parallel_for(pool, num_records(args.num_tokens), grain_for(elements * 8, elements * 8), body);
  }

  void run_tiles(const moe_linear_args& args, const uint8_t* records, int64_t begin, int64_t end) const {
    const int64_t tiles_at_once = std::max<int64_t>(1, kWeightBlockBytes / tile_bytes_);
    const int64_t tokens_at_once =
        std::max<int64_t>(kMaxTileTokens, kInputBlockBytes / row_.bytes / kMaxTileTokens * kMaxTileTokens);
    for (int64_t first = begin; first < end; first += tiles_at_once) {
      const int64_t last = std::min(end, first + tiles_at_once);
      for (int64_t token = 0; token < args.num_tokens; token += tokens_at_once) {
        const int64_t count = std::min(tokens_at_once, args.num_tokens - token);
        for (int64_t t = first; t < last; ++t) run_tile(args, records, tiles_[static_cast<size_t>(t)], token, count);
      }
    }
  }

  void run_tile(const moe_linear_args& args, const uint8_t* records, const TileRef& ref, int64_t first_token,
                int64_t num_tokens) const {
    const auto module = static_cast<size_t>(ref.module);
    const Matrix& matrix = config_.weights->matrices()[module];
    const auto variant = static_cast<size_t>(variants_[module]);
    const float scale = variant_scales_[variant] * sum_factor_;
    alignas(64) float factors[kTileRows];
    for (int r = 0; r < kTileRows; ++r) factors[r] = matrix.factors[ref.tile * kTileRows + r] * scale;
    const TileEpilogue epilogue = {factors, matrix.bias == nullptr ? nullptr : matrix.bias + ref.tile * kTileRows};
    const TileArgs tile = {matrix.tile(ref.tile), matrix.tile_block_scales(ref.tile), &row_,
                           padded_columns(matrix.shape.format, columns_)};
    const uint8_t* inputs = records + static_cast<int64_t>(variant) * args.num_tokens * row_.bytes;
    for_token_blocks(num_tokens, [&](int64_t first, int count) {
      const int64_t token = first_token + first;
      const uint8_t* rows[kMaxTileTokens];
      alignas(64) float sums[kMaxTileTokens * kTileRows];
      alignas(64) float values[kMaxTileTokens * kTileRows];
      float* outputs[kMaxTileTokens];
      static constexpr float kOnes[kMaxTileTokens] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
      for (int m = 0; m < count; ++m) {
        rows[m] = inputs + (token + m) * row_.bytes;
        outputs[m] = values + m * kTileRows;
      }
      tile_fns_[count](tile, rows, sums);
      config_.isa->finish(epilogue, row_, count, rows, sums, kOnes, outputs);
      for (int m = 0; m < count; ++m) {
        float* output = args.output + (token + m) * args.output_stride + ref.first_output;
        for (int r = 0; r < ref.num_rows; ++r)
          output[r] = args.accumulate != 0 ? output[r] + outputs[m][r] : outputs[m][r];
      }
    });
  }

  LinearConfig config_;
  int64_t columns_ = 0;
  int64_t out_features_ = 0;
  int64_t tile_bytes_ = 0;
  RowLayout row_;
  TileFn tile_fns_[kMaxTileTokens + 1] = {};
  float sum_factor_ = 1.0f;
  std::vector<TileRef> tiles_;
  std::vector<int32_t> variants_;
  std::vector<float> variant_scales_;
};

}  // namespace

moe_kernel make_linear_kernel(LinearConfig config) {
  auto* self = new LinearKernel(std::move(config));
  moe_kernel kernel{};
  kernel.size = sizeof(moe_kernel);
  kernel.abi_version = MOE_ABI_VERSION;
  kernel.kind = MOE_KERNEL_LINEAR;
  kernel.self = self;
  kernel.name = self->name();
  kernel.run = [](void* object, const void* args, const moe_exec* exec, moe_error* error) -> int32_t {
    if (object == nullptr) return fail(error, MOE_INVALID_ARGUMENT, "the kernel was disposed");
    return static_cast<const LinearKernel*>(object)->run(*static_cast<const moe_linear_args*>(args), *exec, error);
  };
  kernel.workspace_bytes = [](void* object, int64_t num_tokens, uint32_t) {
    return static_cast<const LinearKernel*>(object)->workspace_bytes(num_tokens);
  };
  kernel.destroy = [](void* object) { delete static_cast<LinearKernel*>(object); };
  return kernel;
}

}  // namespace moe
