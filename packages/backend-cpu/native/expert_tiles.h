// The matrices of an expert group as tiles, and what a thread does with some of them.
#ifndef MOE_BACKEND_CPU_EXPERT_TILES_H_
#define MOE_BACKEND_CPU_EXPERT_TILES_H_

#include "experts_kernel.h"
#include "experts_routing.h"

namespace moe {

// One run: the caller's arguments and what was prepared from them, in the workspace.
struct ExpertsRun {
  const moe_experts_args& args;
  ExpertsRouting routing;
  // Records of tokens or of pairs; see ExpertTiles::num_input_records.
  uint8_t* inputs = nullptr;
  // [num_pairs] records, in the order of `routing.pairs`.
  uint8_t* intermediates = nullptr;

  int64_t num_choices() const { return args.num_tokens * args.top_k; }
};

// What every choice adds to its token's output, 16 columns at a time: kept until all experts are through and then added
// in the order of the token's choices, so that a sum does not depend on which experts other tokens chose.
struct Partials {
  float* base;
  // In floats.
  int64_t choice_stride;
  int64_t tile_stride;

  // `tile` counts from the first that is kept here.
  float* at(int64_t choice, int64_t tile) const { return base + choice * choice_stride + tile * tile_stride; }
};

class ExpertTiles {
 public:
  explicit ExpertTiles(const ExpertsConfig& config);

  int64_t hidden_size() const { return hidden_size_; }
  int64_t num_experts() const { return num_experts_; }
  // Pairs of a gate tile and an up tile per expert, and the bytes of one pair.
  int64_t up_tiles() const { return up_tiles_; }
  int64_t up_bytes() const { return 2 * up_tile_bytes_; }
  int64_t down_tiles() const { return down_tiles_; }
  int64_t down_bytes() const { return down_tile_bytes_; }
  const RowLayout& input_row() const { return input_row_; }
  const RowLayout& intermediate_row() const { return intermediate_row_; }
  // Scales over more than a tile are known once the whole row is: then quantize() comes between gate_up() and down().
  bool quantizes_whole_rows() const {
    return config_.input == InputKind::kFp8Token || config_.input == InputKind::kFp8Group128;
  }

  // Experts with equal input scales share one record per token; otherwise every pair has its own, or one for gate and
  // one for up.
  int64_t num_input_records(int64_t num_tokens, int64_t num_pairs) const {
    return shared_inputs_ ? num_tokens : num_pairs * (separate_up_ ? 2 : 1);
  }
  void prepare_input(const ExpertsRun& run, int64_t record) const;
  // Zeros in the columns of a pair's intermediate record that no tile writes.
  void clear_padding(const ExpertsRun& run, int64_t pair) const;

  // Activations of [first, last) pairs of tiles of a segment, written to the intermediate records.
  void gate_up(const ExpertsRun& run, const Segment& segment, int64_t first, int64_t last) const;
  void quantize(const ExpertsRun& run, int64_t pair) const;
  // What a segment adds to the columns of one tile, weighted; `kept`: the tile's place in `partials`.
  void down(const ExpertsRun& run, const Segment& segment, int64_t tile, const Partials& partials, int64_t kept) const;
  // Outputs of one tile's columns, for all tokens.
  void add_up(const ExpertsRun& run, int64_t tile, const Partials& partials, int64_t kept) const;

 private:
  float input_scale(int64_t slot, int64_t projection) const {
    return config_.input_scales.empty() ? 1.0f : config_.input_scales[static_cast<size_t>(slot * 3 + projection)];
  }
  const uint8_t* input_record(const ExpertsRun& run, int64_t pair, bool up) const;
  void gate_up_tile(const ExpertsRun& run, int64_t slot, int64_t tile, int64_t begin, int64_t end) const;

  const ExpertsConfig& config_;
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

}  // namespace moe

#endif  // MOE_BACKEND_CPU_EXPERT_TILES_H_
