#include "experts_kernel.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "moe/status.hpp"
#include "work_split.h"

namespace moe {
namespace {

// Output tiles of the down projection that a thread works on at a time, so that inputs are read once for all of them;
// fewer when the contributions of all tokens would not stay in the second-level cache.
constexpr int64_t kDownTiles = 4;
constexpr int64_t kPartialBytes = 1 << 20;

constexpr int64_t kTilePartialBytes = kTileRows * static_cast<int64_t>(sizeof(float));

int64_t down_tiles_at_once(int64_t choices) {
  return std::clamp<int64_t>(kPartialBytes / (choices * kTilePartialBytes), 1, kDownTiles);
}

// Partials of one thread. Never less for more choices, unlike down_tiles_at_once(choices) * choices: the memory is
// allocated for the largest step, and smaller ones must find room in it.
int64_t thread_partials(int64_t choices) {
  return std::max(choices, std::min(choices * kDownTiles, kPartialBytes / kTilePartialBytes)) * kTileRows;
}

// Pairs (token, choice) of one expert within `Plan::pairs`.
struct Segment {
  int32_t slot;
  int32_t begin;
  int32_t end;
};

// Everything of one run, in the workspace.
struct Plan {
  // [num_pairs]: token * top_k + choice, sorted by expert, then by token.
  int32_t* pairs;
  int32_t* positions;
  Segment* segments;
  int64_t num_segments = 0;
  int64_t num_pairs = 0;
  uint8_t* inputs;
  // [num_pairs] records, in the order of `pairs`.
  uint8_t* intermediates;
  // Per thread at least [down_tiles_at_once, tokens * top_k, 16].
  float* partials;
  int64_t thread_partials = 0;
};

class ExpertsKernel {
 public:
  explicit ExpertsKernel(ExpertsConfig config) : config_(std::move(config)) {
    const std::vector<Matrix>& matrices = config_.weights->matrices();
    num_experts_ = static_cast<int64_t>(matrices.size() / 3);
    const MatrixShape& up = matrices[0].shape;
    const MatrixShape& down = matrices[2].shape;
    hidden_size_ = up.columns;
    input_row_ = make_row_layout(config_.input, config_.isa->element(up.format, config_.input), up.columns);
    intermediate_row_ = make_row_layout(config_.input, config_.isa->element(down.format, config_.input), down.columns);
    for (int m = 1; m <= kMaxTileTokens; ++m) {
      up_fns_[m] = config_.isa->tile(up.format, config_.input, m);
      down_fns_[m] = config_.isa->tile(down.format, config_.input, m);
    }
    up_factor_ = config_.isa->sum_factor(up.format, config_.input);
    down_factor_ = config_.isa->sum_factor(down.format, config_.input);
    up_tiles_ = matrices[0].num_tiles;
    down_tiles_ = matrices[2].num_tiles;
    up_tile_bytes_ = tile_bytes(up.format, up.columns);
    down_tile_bytes_ = tile_bytes(down.format, down.columns);
    for (int64_t e = 0; e < num_experts_ && !config_.input_scales.empty(); ++e) {
      if (input_scale(e, 0) != input_scale(0, 0) || input_scale(e, 1) != input_scale(0, 0)) shared_inputs_ = false;
      if (input_scale(e, 0) != input_scale(e, 1)) separate_up_ = true;
    }
  }

  const char* name() const { return config_.name.c_str(); }

  uint64_t workspace_bytes(int64_t num_tokens, uint32_t num_threads) const {
    Plan plan;
    return carve(nullptr, num_tokens, num_threads, plan);
  }

  int32_t run(const moe_experts_args& args, const moe_exec& exec, moe_error* error) const {
    if (args.input_dtype != MOE_F32) return fail(error, MOE_INVALID_ARGUMENT, "%s: inputs must be float32", name());
    if (args.hidden_size != hidden_size_ || args.top_k < 1 || args.top_k > config_.top_k) {
      return fail(error, MOE_INVALID_ARGUMENT,
                  "%s: built for hidden size %lld and up to %d experts per token, called with %d and %d", name(),
                  static_cast<long long>(hidden_size_), config_.top_k, args.hidden_size, args.top_k);
    }
    if (args.num_tokens <= 0) return MOE_OK;
    const uint32_t num_threads = exec.pool == nullptr ? 1 : exec.pool->num_threads;
    const uint64_t needed = workspace_bytes(args.num_tokens, num_threads);
    if (exec.workspace == nullptr || exec.workspace_bytes < needed) {
      return fail(error, MOE_INVALID_ARGUMENT, "%s: the workspace has %llu bytes, %lld tokens need %llu", name(),
                  static_cast<unsigned long long>(exec.workspace_bytes), static_cast<long long>(args.num_tokens),
                  static_cast<unsigned long long>(needed));
    }
    Plan plan;
    carve(exec.workspace, args.num_tokens, num_threads, plan);
    const int64_t bad = sort_by_expert(args, plan);
    if (bad >= 0) {
      return fail(error, MOE_INVALID_ARGUMENT, "%s: token %lld chose slot %d, the group has %lld", name(),
                  static_cast<long long>(bad / args.top_k), args.topk_slots[bad], static_cast<long long>(num_experts_));
    }
    prepare_inputs(args, exec.pool, plan);
    run_gate_up(args, exec.pool, plan);
    quantize_intermediates(exec.pool, plan);
    run_down(args, exec.pool, plan);
    return MOE_OK;
  }

 private:
  float input_scale(int64_t slot, int64_t projection) const {
    return config_.input_scales.empty() ? 1.0f : config_.input_scales[static_cast<size_t>(slot * 3 + projection)];
  }

  uint64_t carve(void* base, int64_t num_tokens, uint32_t num_threads, Plan& plan) const {
    Carver carver(base);
    const int64_t pairs = num_tokens * config_.top_k;
    plan.pairs = carver.take<int32_t>(pairs);
    plan.positions = carver.take<int32_t>(num_experts_ + 1);
    plan.segments = carver.take<Segment>(num_experts_);
    plan.inputs =
        carver.take<uint8_t>((shared_inputs_ ? num_tokens : pairs * (separate_up_ ? 2 : 1)) * input_row_.bytes);
    plan.intermediates = carver.take<uint8_t>(pairs * intermediate_row_.bytes);
    plan.thread_partials = thread_partials(pairs);
    plan.partials = carver.take<float>(static_cast<int64_t>(num_threads) * plan.thread_partials);
    return carver.used();
  }

  // Counting sort. Answers the index of a choice outside the group, or -1.
  int64_t sort_by_expert(const moe_experts_args& args, Plan& plan) const {
    const int64_t choices = args.num_tokens * args.top_k;
    std::fill(plan.positions, plan.positions + num_experts_ + 1, 0);
    for (int64_t i = 0; i < choices; ++i) {
      const int32_t slot = args.topk_slots[i];
      if (slot < -1 || slot >= num_experts_) return i;
      if (slot >= 0) ++plan.positions[slot + 1];
    }
    for (int64_t e = 0; e < num_experts_; ++e) {
      const int32_t begin = plan.positions[e];
      plan.positions[e + 1] += begin;
      if (plan.positions[e + 1] > begin)
        plan.segments[plan.num_segments++] = {static_cast<int32_t>(e), begin, plan.positions[e + 1]};
    }
    plan.num_pairs = plan.positions[num_experts_];
    for (int64_t i = 0; i < choices; ++i) {
      const int32_t slot = args.topk_slots[i];
      if (slot >= 0) plan.pairs[plan.positions[slot]++] = static_cast<int32_t>(i);
    }
    return -1;
  }

  // Experts with equal input scales share one record per token; otherwise every pair has its own, in the order of
  // `pairs`.
  void prepare_inputs(const moe_experts_args& args, const moe_pool* pool, const Plan& plan) const {
    const auto* hidden = static_cast<const float*>(args.hidden_states);
    const double elements = static_cast<double>(hidden_size_);
    const int64_t grain = grain_for(elements * 8, elements * 8);
    if (shared_inputs_) {
      auto body = [&](int64_t begin, int64_t end, uint32_t) {
        for (int64_t t = begin; t < end; ++t) {
          config_.isa->prepare_row(hidden + t * args.hidden_stride, input_row_, input_scale(0, 0),
                                   plan.inputs + t * input_row_.bytes);
        }
      };
      parallel_for(pool, args.num_tokens, grain, body);
    } else {
      auto body = [&](int64_t begin, int64_t end, uint32_t) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t pair = i % plan.num_pairs;
          const int64_t choice = plan.pairs[pair];
          config_.isa->prepare_row(hidden + choice / args.top_k * args.hidden_stride, input_row_,
                                   input_scale(args.topk_slots[choice], i / plan.num_pairs),
                                   plan.inputs + i * input_row_.bytes);
        }
      };
      parallel_for(pool, plan.num_pairs * (separate_up_ ? 2 : 1), grain, body);
    }
    // Columns that no tile writes must add nothing.
    const int64_t written = up_tiles_ * kTileRows;
    if (written == intermediate_row_.padded) return;
    for (int64_t p = 0; p < plan.num_pairs; ++p) {
      uint8_t* record = plan.intermediates + p * intermediate_row_.bytes;
      const int64_t element = intermediate_row_.scales / intermediate_row_.padded;
      std::memset(record + written * element, 0, static_cast<size_t>((intermediate_row_.padded - written) * element));
      if (intermediate_row_.kind == InputKind::kNvfp4) {
        const size_t groups = static_cast<size_t>(intermediate_row_.padded / 16 - up_tiles_);
        std::memset(record + intermediate_row_.scales + up_tiles_ * 4, 0, groups * 4);
        std::memset(record + intermediate_row_.offsets + up_tiles_ * 4, 0, groups * 4);
      }
    }
  }

  void run_gate_up(const moe_experts_args& args, const moe_pool* pool, const Plan& plan) const {
    auto body = [&](int64_t begin, int64_t end, uint32_t) {
      while (begin < end) {
        const Segment& segment = plan.segments[begin / up_tiles_];
        const int64_t first = begin % up_tiles_;
        const int64_t last = std::min(up_tiles_, first + (end - begin));
        gate_up_tiles(args, plan, segment, first, last);
        begin += last - first;
      }
    };
    const double tokens =
        static_cast<double>(plan.num_pairs) / static_cast<double>(std::max<int64_t>(1, plan.num_segments));
    const double products = 2.0 * static_cast<double>(kTileRows * hidden_size_) * tokens;
    parallel_for(pool, plan.num_segments * up_tiles_, grain_for(2.0 * static_cast<double>(up_tile_bytes_), products),
                 body);
  }

  void gate_up_tiles(const moe_experts_args& args, const Plan& plan, const Segment& segment, int64_t first,
                     int64_t last) const {
    const int64_t tiles_at_once = std::max<int64_t>(1, kWeightBlockBytes / (2 * up_tile_bytes_));
    const int64_t pairs_at_once =
        std::max<int64_t>(kMaxTileTokens, kInputBlockBytes / input_row_.bytes / kMaxTileTokens * kMaxTileTokens);
    for (int64_t group = first; group < last; group += tiles_at_once) {
      for (int64_t begin = segment.begin; begin < segment.end; begin += pairs_at_once) {
        const int64_t end = std::min<int64_t>(segment.end, begin + pairs_at_once);
        for (int64_t t = group; t < std::min(last, group + tiles_at_once); ++t) {
          gate_up_tile(args, plan, segment.slot, t, begin, end);
        }
      }
    }
  }

  const uint8_t* input_record(const moe_experts_args& args, const Plan& plan, int64_t pair, bool up) const {
    if (shared_inputs_) return plan.inputs + plan.pairs[pair] / args.top_k * input_row_.bytes;
    return plan.inputs + (pair + (up && separate_up_ ? plan.num_pairs : 0)) * input_row_.bytes;
  }

  void gate_up_tile(const moe_experts_args& args, const Plan& plan, int64_t slot, int64_t tile, int64_t begin,
                    int64_t end) const {
    const Matrix& gate = config_.weights->matrices()[static_cast<size_t>(slot * 3)];
    const Matrix& up = config_.weights->matrices()[static_cast<size_t>(slot * 3 + 1)];
    alignas(64) float gate_factors[kTileRows];
    alignas(64) float up_factors[kTileRows];
    const int64_t row = tile * kTileRows;
    for (int r = 0; r < kTileRows; ++r) {
      gate_factors[r] = gate.factors[row + r] * (input_scale(slot, 0) * up_factor_);
      up_factors[r] = up.factors[row + r] * (input_scale(slot, 1) * up_factor_);
    }
    const GateUpArgs finish = {{gate_factors, gate.bias == nullptr ? nullptr : gate.bias + row},
                               {up_factors, up.bias == nullptr ? nullptr : up.bias + row},
                               config_.activation,
                               &input_row_,
                               &intermediate_row_,
                               input_scale(slot, 2)};
    const int64_t columns = padded_columns(gate.shape.format, hidden_size_);
    const TileArgs gate_args = {gate.tile(tile), gate.tile_block_scales(tile), &input_row_, columns};
    const TileArgs up_args = {up.tile(tile), up.tile_block_scales(tile), &input_row_, columns};
    for_token_blocks(end - begin, [&](int64_t first, int count) {
      const uint8_t* gate_rows[kMaxTileTokens];
      const uint8_t* up_rows[kMaxTileTokens];
      uint8_t* records[kMaxTileTokens];
      alignas(64) float gate_sums[kMaxTileTokens * kTileRows];
      alignas(64) float up_sums[kMaxTileTokens * kTileRows];
      for (int m = 0; m < count; ++m) {
        const int64_t pair = begin + first + m;
        gate_rows[m] = input_record(args, plan, pair, false);
        up_rows[m] = input_record(args, plan, pair, true);
        records[m] = plan.intermediates + pair * intermediate_row_.bytes;
      }
      up_fns_[count](gate_args, gate_rows, gate_sums);
      up_fns_[count](up_args, up_rows, up_sums);
      config_.isa->gate_up(finish, count, gate_rows, gate_sums, up_sums, tile, records);
    });
  }

  // Scales over more than a tile are known once the whole row is.
  void quantize_intermediates(const moe_pool* pool, const Plan& plan) const {
    if (config_.input != InputKind::kFp8Token && config_.input != InputKind::kFp8Group128) return;
    auto body = [&](int64_t begin, int64_t end, uint32_t) {
      for (int64_t p = begin; p < end; ++p) {
        config_.isa->quantize_record(intermediate_row_, plan.intermediates + p * intermediate_row_.bytes);
      }
    };
    const double elements = static_cast<double>(intermediate_row_.padded);
    parallel_for(pool, plan.num_pairs, grain_for(elements * 8, elements * 8), body);
  }

  void run_down(const moe_experts_args& args, const moe_pool* pool, const Plan& plan) const {
    const int64_t at_once = down_tiles_at_once(args.num_tokens * config_.top_k);
    auto body = [&](int64_t begin, int64_t end, uint32_t thread) {
      for (int64_t tile = begin; tile < end; tile += at_once)
        down_tiles(args, plan, tile, std::min(end, tile + at_once), thread);
    };
    const double products =
        static_cast<double>(kTileRows * intermediate_row_.padded) * static_cast<double>(plan.num_pairs);
    const double bytes = static_cast<double>(down_tile_bytes_ * plan.num_segments);
    parallel_for(pool, down_tiles_, grain_for(bytes, products), body);
  }

  // A few output tiles for all tokens: every pair's contribution is kept until all experts are through, then added up
  // in the order of the token's choices. So the order of the sum does not depend on which experts other tokens chose.
  void down_tiles(const moe_experts_args& args, const Plan& plan, int64_t first, int64_t last, uint32_t thread) const {
    const int64_t choices = args.num_tokens * args.top_k;
    float* partials = plan.partials + static_cast<int64_t>(thread) * plan.thread_partials;
    for (int64_t s = 0; s < plan.num_segments; ++s) {
      for (int64_t t = first; t < last; ++t)
        down_tile(args, plan, plan.segments[s], t, partials + (t - first) * choices * kTileRows);
    }
    for (int64_t t = first; t < last; ++t) {
      const int64_t rows = std::min<int64_t>(kTileRows, hidden_size_ - t * kTileRows);
      for (int64_t token = 0; token < args.num_tokens; ++token) {
        alignas(64) float sum[kTileRows] = {};
        for (int64_t j = token * args.top_k; j < (token + 1) * args.top_k; ++j) {
          if (args.topk_slots[j] < 0) continue;
          const float* partial = partials + ((t - first) * choices + j) * kTileRows;
          for (int r = 0; r < kTileRows; ++r) sum[r] += partial[r];
        }
        float* output = args.output + token * args.output_stride + t * kTileRows;
        for (int64_t r = 0; r < rows; ++r) output[r] = args.accumulate != 0 ? output[r] + sum[r] : sum[r];
      }
    }
  }

  void down_tile(const moe_experts_args& args, const Plan& plan, const Segment& segment, int64_t tile,
                 float* partials) const {
    const Matrix& down = config_.weights->matrices()[static_cast<size_t>(segment.slot) * 3 + 2];
    alignas(64) float factors[kTileRows];
    for (int r = 0; r < kTileRows; ++r) {
      factors[r] = down.factors[tile * kTileRows + r] * (input_scale(segment.slot, 2) * down_factor_);
    }
    const TileEpilogue epilogue = {factors, down.bias == nullptr ? nullptr : down.bias + tile * kTileRows};
    const TileArgs tile_args = {down.tile(tile), down.tile_block_scales(tile), &intermediate_row_,
                                padded_columns(down.shape.format, down.shape.columns)};
    for_token_blocks(segment.end - segment.begin, [&](int64_t first, int count) {
      const uint8_t* rows[kMaxTileTokens];
      float weights[kMaxTileTokens];
      float* outputs[kMaxTileTokens];
      alignas(64) float sums[kMaxTileTokens * kTileRows];
      for (int m = 0; m < count; ++m) {
        const int64_t pair = segment.begin + first + m;
        rows[m] = plan.intermediates + pair * intermediate_row_.bytes;
        weights[m] = args.topk_weights[plan.pairs[pair]];
        outputs[m] = partials + static_cast<int64_t>(plan.pairs[pair]) * kTileRows;
      }
      down_fns_[count](tile_args, rows, sums);
      config_.isa->finish(epilogue, intermediate_row_, count, rows, sums, weights, outputs);
    });
  }

  ExpertsConfig config_;
  int64_t num_experts_ = 0;
  int64_t hidden_size_ = 0;
  RowLayout input_row_;
  RowLayout intermediate_row_;
  TileFn up_fns_[kMaxTileTokens + 1] = {};
  TileFn down_fns_[kMaxTileTokens + 1] = {};
  float up_factor_ = 1.0f;
  float down_factor_ = 1.0f;
  int64_t up_tiles_ = 0;
  int64_t down_tiles_ = 0;
  int64_t up_tile_bytes_ = 0;
  int64_t down_tile_bytes_ = 0;
  bool shared_inputs_ = true;
  bool separate_up_ = false;
};

}  // namespace

moe_kernel make_experts_kernel(ExpertsConfig config) {
  auto* self = new ExpertsKernel(std::move(config));
  moe_kernel kernel{};
  kernel.size = sizeof(moe_kernel);
  kernel.abi_version = MOE_ABI_VERSION;
  kernel.kind = MOE_KERNEL_EXPERTS;
  kernel.self = self;
  kernel.name = self->name();
  kernel.run = [](void* object, const void* args, const moe_exec* exec, moe_error* error) -> int32_t {
    if (object == nullptr) return fail(error, MOE_INVALID_ARGUMENT, "the kernel was disposed");
    return static_cast<const ExpertsKernel*>(object)->run(*static_cast<const moe_experts_args*>(args), *exec, error);
  };
  kernel.workspace_bytes = [](void* object, int64_t num_tokens, uint32_t num_threads) {
    return static_cast<const ExpertsKernel*>(object)->workspace_bytes(num_tokens, num_threads);
  };
  kernel.destroy = [](void* object) { delete static_cast<ExpertsKernel*>(object); };
  return kernel;
}

}  // namespace moe
