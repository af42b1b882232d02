#include "expert_tiles.h"

#include <algorithm>
#include <cstring>

namespace moe {

ExpertTiles::ExpertTiles(const ExpertsConfig& config) : config_(config) {
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

void ExpertTiles::prepare_input(const ExpertsRun& run, int64_t record) const {
  const auto* hidden = static_cast<const float*>(run.args.hidden_states);
  int64_t token = record;
  float scale = input_scale(0, 0);
  if (!shared_inputs_) {
    const int64_t choice = run.routing.pairs[record % run.routing.num_pairs];
    token = choice / run.args.top_k;
    scale = input_scale(run.args.topk_slots[choice], record / run.routing.num_pairs);
  }
  config_.isa->prepare_row(hidden + token * run.args.hidden_stride, input_row_, scale,
                           run.inputs + record * input_row_.bytes);
}

void ExpertTiles::clear_padding(const ExpertsRun& run, int64_t pair) const {
  const int64_t written = up_tiles_ * kTileRows;
  if (written == intermediate_row_.padded) return;
  uint8_t* record = run.intermediates + pair * intermediate_row_.bytes;
  const int64_t element = intermediate_row_.scales / intermediate_row_.padded;
  std::memset(record + written * element, 0, static_cast<size_t>((intermediate_row_.padded - written) * element));
  if (intermediate_row_.kind == InputKind::kNvfp4) {
    const size_t groups = static_cast<size_t>(intermediate_row_.padded / 16 - up_tiles_);
    std::memset(record + intermediate_row_.scales + up_tiles_ * 4, 0, groups * 4);
    std::memset(record + intermediate_row_.offsets + up_tiles_ * 4, 0, groups * 4);
  }
}

const uint8_t* ExpertTiles::input_record(const ExpertsRun& run, int64_t pair, bool up) const {
  if (shared_inputs_) return run.inputs + run.routing.pairs[pair] / run.args.top_k * input_row_.bytes;
  return run.inputs + (pair + (up && separate_up_ ? run.routing.num_pairs : 0)) * input_row_.bytes;
}

// Blocks of tiles and of tokens that stay in the cache.
void ExpertTiles::gate_up(const ExpertsRun& run, const Segment& segment, int64_t first, int64_t last) const {
  const int64_t tiles_at_once = std::max<int64_t>(1, kWeightBlockBytes / up_bytes());
  const int64_t pairs_at_once =
      std::max<int64_t>(kMaxTileTokens, kInputBlockBytes / input_row_.bytes / kMaxTileTokens * kMaxTileTokens);
  for (int64_t group = first; group < last; group += tiles_at_once) {
    for (int64_t begin = segment.begin; begin < segment.end; begin += pairs_at_once) {
      const int64_t end = std::min<int64_t>(segment.end, begin + pairs_at_once);
      for (int64_t t = group; t < std::min(last, group + tiles_at_once); ++t) {
        gate_up_tile(run, segment.slot, t, begin, end);
      }
    }
  }
}

void ExpertTiles::gate_up_tile(const ExpertsRun& run, int64_t slot, int64_t tile, int64_t begin, int64_t end) const {
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
      gate_rows[m] = input_record(run, pair, false);
      up_rows[m] = input_record(run, pair, true);
      records[m] = run.intermediates + pair * intermediate_row_.bytes;
    }
    up_fns_[count](gate_args, gate_rows, gate_sums);
    up_fns_[count](up_args, up_rows, up_sums);
    config_.isa->gate_up(finish, count, gate_rows, gate_sums, up_sums, tile, records);
  });
}

void ExpertTiles::quantize(const ExpertsRun& run, int64_t pair) const {
  config_.isa->quantize_record(intermediate_row_, run.intermediates + pair * intermediate_row_.bytes);
}

void ExpertTiles::down(const ExpertsRun& run, const Segment& segment, int64_t tile, const Partials& partials,
                       int64_t kept) const {
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
      const int64_t choice = run.routing.pairs[pair];
      rows[m] = run.intermediates + pair * intermediate_row_.bytes;
      weights[m] = run.args.topk_weights[choice];
      outputs[m] = partials.at(choice, kept);
    }
    down_fns_[count](tile_args, rows, sums);
    config_.isa->finish(epilogue, intermediate_row_, count, rows, sums, weights, outputs);
  });
}

void ExpertTiles::add_up(const ExpertsRun& run, int64_t tile, const Partials& partials, int64_t kept) const {
  const moe_experts_args& args = run.args;
  const int64_t rows = std::min<int64_t>(kTileRows, hidden_size_ - tile * kTileRows);
  for (int64_t token = 0; token < args.num_tokens; ++token) {
    alignas(64) float sum[kTileRows] = {};
    for (int64_t choice = token * args.top_k; choice < (token + 1) * args.top_k; ++choice) {
      if (args.topk_slots[choice] < 0) continue;
      const float* partial = partials.at(choice, kept);
      for (int r = 0; r < kTileRows; ++r) sum[r] += partial[r];
    }
    float* output = args.output + token * args.output_stride + tile * kTileRows;
    for (int64_t r = 0; r < rows; ++r) output[r] = args.accumulate != 0 ? output[r] + sum[r] : sum[r];
  }
}

}  // namespace moe
