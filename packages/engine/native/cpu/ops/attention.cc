#include "attention.h"

#include <limits>

/*
 * Attention in pieces that threads can share without changing a bit.
 *
 * A tile is some neighbouring tokens of one sequence with all query heads of one key/value head, so that keys and
 * values are read once for all of them. Its context is walked in segments of kSegment positions; a segment's result
 * (max, sum, output) is merged into the running one in ascending order, as in online softmax (Milakov and Gimelshein
 * 2018; segments as in Flash-Decoding, Dao et al. 2023). What a row gets from a segment depends on that row alone, so
 * neither the size of the tile nor who computes the segment matters.
 *
 * Usually a thread takes whole tiles. Where there are too few of them for the threads, because few sequences decode,
 * each segment is a piece of work of its own, and merging comes afterwards.
 */
namespace moe {
namespace {

/* Pieces of work per thread below which tiles become smaller, and at last segments are split. */
constexpr int64_t kPiecesPerThread = 4;

constexpr int64_t kSegmentBlocks = kSegment / kKvBlock;

/* Rows of (largest score, sum of exponentials, weighted sum of values). */
struct Partial {
  float* max;
  float* sum;
  float* output; /* [rows, head_dim] */

  static Partial take(Scratch& scratch, int64_t rows, int64_t head_dim) {
    Partial partial{};
    partial.max = scratch.take<float>(rows);
    partial.sum = scratch.take<float>(rows);
    partial.output = scratch.take<float>(rows * head_dim);
    return partial;
  }
  Partial at(int64_t row, int64_t head_dim) const { return {max + row, sum + row, output + row * head_dim}; }
};

/* What one thread needs for one tile and segment. */
struct ThreadScratch {
  ThreadScratch(Scratch& scratch, const KvCache& cache) {
    rows = scratch.take<const float*>(kMaxQueryRows);
    queries = scratch.take<uint8_t>(int64_t{kMaxQueryRows} * cache.head_dim * static_cast<int64_t>(sizeof(float)));
    begin = scratch.take<int32_t>(kMaxQueryRows);
    end = scratch.take<int32_t>(kMaxQueryRows);
    blocks = scratch.take<int64_t>(kSegmentBlocks + kBlocksAhead);
    scores = scratch.take<float>(int64_t{kMaxQueryRows} * kSegment);
    decoded = scratch.take<uint8_t>(cache.dtype == KvDType::kBf16 ? 0 : kDecodedBlocks * kKvBlock * cache.head_dim * 2);
    running = Partial::take(scratch, kMaxQueryRows, cache.head_dim);
    segment = Partial::take(scratch, kMaxQueryRows, cache.head_dim);
  }

  const float** rows;
  uint8_t* queries; /* the rows as the kernel reads them */
  /* Positions of the segment that each row sees. */
  int32_t *begin, *end;
  int64_t* blocks;
  float* scores;
  uint8_t* decoded;
  Partial running, segment;
};

struct Tile {
  int64_t seq, kv_head;
  int64_t first_token, num_tokens; /* in the batch */
};

int64_t group_size(const Attention& op) { return op.num_heads / op.cache.num_kv_heads; }

int64_t max_segments(int64_t max_blocks_per_seq) {
  return (max_blocks_per_seq + kSegmentBlocks - 1) / kSegmentBlocks;
}

class AttentionRun {
 public:
  AttentionRun(const Attention& op, const OpContext& context)
      : op_(op), context_(context), step_(context.step), shared_(context.workspace) {
    Scratch count(nullptr);
    ThreadScratch(count, op.cache);
    thread_bytes_ = count.used();
    threads_ = shared_.take<uint8_t>(static_cast<int64_t>(thread_bytes_ * context.pool.num_threads()));
  }

  /* Bytes of scratch memory, for a pool of this many threads. */
  static uint64_t workspace_bytes(const Attention& op, const StepLimits& limits, uint32_t num_threads) {
    Scratch count(nullptr);
    ThreadScratch(count, op.cache);
    const uint64_t thread_bytes = count.used();
    const int64_t few = kPiecesPerThread * num_threads;
    Scratch tiles(nullptr);
    tiles.take<int32_t>(limits.max_num_seqs + 1);
    Scratch split(nullptr);
    split.take<int32_t>(few + 1);
    /* run() splits where there are fewer pairs of token and head than this, each with segments of its own. */
    const int64_t segments =
        std::min(few, limits.max_num_tokens * op.cache.num_kv_heads) * max_segments(limits.max_blocks_per_seq);
    Partial::take(split, segments * group_size(op), op.cache.head_dim);
    return thread_bytes * num_threads + std::max(tiles.used(), split.used());
  }

  void run() {
    if (step_.num_tokens == 0) return;
    const int64_t enough = kPiecesPerThread * context_.pool.num_threads();
    int64_t tile_tokens = std::max<int64_t>(1, kMaxQueryRows / group_);
    while (tile_tokens > 1 && count_tiles(tile_tokens) < enough) tile_tokens /= 2;
    const bool few = step_.num_tokens * kv_heads_ < enough;
    if (few && context_.pool.num_threads() > 1 && count_segments() > step_.num_tokens) {
      run_split();
    } else {
      run_tiles(tile_tokens);
    }
  }

 private:
  int64_t tiles_of(int64_t seq, int64_t tile_tokens) const {
    return (step_.query_starts[seq + 1] - step_.query_starts[seq] + tile_tokens - 1) / tile_tokens;
  }
  int64_t count_tiles(int64_t tile_tokens) const {
    int64_t tiles = 0;
    for (int64_t s = 0; s < step_.num_seqs; s++) tiles += tiles_of(s, tile_tokens);
    return tiles * kv_heads_;
  }
  int64_t first_visible(int64_t position) const {
    return op_.sliding_window > 0 ? std::max<int64_t>(0, position - op_.sliding_window + 1) : 0;
  }
  int64_t first_segment(int64_t token) const { return first_visible(step_.positions[token]) / kSegment; }
  int64_t last_segment(int64_t token) const { return step_.positions[token] / kSegment; }
  int64_t num_segments(int64_t token) const { return last_segment(token) - first_segment(token) + 1; }
  int64_t count_segments() const {
    int64_t segments = 0;
    for (int64_t t = 0; t < step_.num_tokens; t++) segments += num_segments(t);
    return segments;
  }
  ThreadScratch thread_scratch(uint32_t thread) const {
    Scratch scratch(threads_ + thread_bytes_ * thread);
    return ThreadScratch(scratch, op_.cache);
  }

  /* Tiles of one key/value head follow one another, so that a thread finds the head's cache warm; the last, which see
   * the most, come first, so that what is left at the end is short. */
  void run_tiles(int64_t tile_tokens) {
    int32_t* starts = shared_.take<int32_t>(step_.num_seqs + 1);
    starts[0] = 0;
    for (int64_t s = 0; s < step_.num_seqs; s++)
      starts[s + 1] = starts[s] + static_cast<int32_t>(tiles_of(s, tile_tokens) * kv_heads_);
    const int64_t count = starts[step_.num_seqs];
    const auto body = [&](int64_t begin, int64_t end, uint32_t thread) {
      ThreadScratch scratch = thread_scratch(thread);
      for (int64_t i = begin; i < end; i++) {
        const int64_t seq = std::upper_bound(starts, starts + step_.num_seqs + 1, i) - starts - 1;
        const int64_t within = i - starts[seq], tiles = tiles_of(seq, tile_tokens);
        const int64_t first = step_.query_starts[seq] + (tiles - 1 - within % tiles) * tile_tokens;
        run_tile({seq, within / tiles, first, std::min<int64_t>(tile_tokens, step_.query_starts[seq + 1] - first)},
                 scratch);
      }
    };
    /* One short sequence is done before another thread would have looked up. */
    const int64_t products = step_.num_tokens * op_.num_heads * head_dim_ * (step_.positions[step_.num_tokens - 1] + 1);
    if (step_.num_seqs == 1 && products <= kInlineElements) return body(0, count, 0);
    context_.pool.parallel_for(count, 1, body);
  }

  void run_tile(const Tile& tile, ThreadScratch& scratch) {
    const int64_t rows = tile.num_tokens * group_;
    for (int64_t r = 0; r < rows; r++) start_row(head_of(tile, r), scratch.running.at(r, head_dim_));
    prepare_queries(tile, scratch);
    const int64_t last = last_segment(tile.first_token + tile.num_tokens - 1);
    for (int64_t segment = first_segment(tile.first_token); segment <= last; segment++) {
      attend_segment(tile, segment, scratch, scratch.segment);
      for (int64_t r = 0; r < rows; r++) {
        if (scratch.begin[r] < scratch.end[r])
          merge_row(scratch.running.at(r, head_dim_), scratch.segment.at(r, head_dim_));
      }
    }
    for (int64_t r = 0; r < rows; r++) {
      finish_row(tile.first_token + r / group_, head_of(tile, r), scratch.running.at(r, head_dim_));
    }
  }

  /* Pieces: for each token its key/value heads, for each of those its segments. */
  void run_split() {
    const int64_t tokens = step_.num_tokens;
    int32_t* starts = shared_.take<int32_t>(tokens + 1);
    starts[0] = 0;
    for (int64_t t = 0; t < tokens; t++) starts[t + 1] = starts[t] + static_cast<int32_t>(num_segments(t) * kv_heads_);
    const Partial partials = Partial::take(shared_, starts[tokens] * group_, head_dim_);
    /* Neighbouring segments stay on one thread, which has fetched the beginning of the next. */
    const int64_t grain = std::max<int64_t>(1, starts[tokens] / (kPiecesPerThread * context_.pool.num_threads()));
    context_.pool.parallel_for(starts[tokens], grain, [&](int64_t begin, int64_t end, uint32_t thread) {
      ThreadScratch scratch = thread_scratch(thread);
      for (int64_t i = begin; i < end; i++) {
        const int64_t token = std::upper_bound(starts, starts + tokens + 1, i) - starts - 1;
        const int64_t within = i - starts[token], segments = num_segments(token);
        const int64_t seq = std::upper_bound(step_.query_starts, step_.query_starts + step_.num_seqs + 1, token) -
                            step_.query_starts - 1;
        const Tile tile{seq, within / segments, token, 1};
        if (i == begin || within % segments == 0) prepare_queries(tile, scratch);
        attend_segment(tile, first_segment(token) + within % segments, scratch, partials.at(i * group_, head_dim_));
      }
    });
    for_rows(context_, tokens * op_.num_heads, starts[tokens] * head_dim_ / (tokens * kv_heads_),
             [&](int64_t begin, int64_t end, uint32_t thread) {
               const Partial running = thread_scratch(thread).running;
               for (int64_t i = begin; i < end; i++) {
                 const int64_t token = i / op_.num_heads, head = i % op_.num_heads;
                 const int64_t first = starts[token] + head / group_ * num_segments(token);
                 start_row(head, running);
                 for (int64_t piece = first; piece < first + num_segments(token); piece++) {
                   merge_row(running, partials.at(piece * group_ + head % group_, head_dim_));
                 }
                 finish_row(token, head, running);
               }
             });
  }

  void prepare_queries(const Tile& tile, const ThreadScratch& scratch) const {
    const int64_t rows = tile.num_tokens * group_;
    for (int64_t r = 0; r < rows; r++) {
      const int64_t token = tile.first_token + r / group_;
      scratch.rows[r] = op_.queries + (token * op_.row_width + op_.query_offset + head_of(tile, r) * head_dim_);
    }
    context_.kernels.prepare_queries(scratch.rows, static_cast<int32_t>(rows), static_cast<int32_t>(head_dim_),
                                     scratch.queries);
  }

  /* Of queries that were prepared. */
  void attend_segment(const Tile& tile, int64_t segment, ThreadScratch& scratch, const Partial& result) {
    const KvCache& cache = op_.cache;
    const int64_t origin = segment * kSegment;
    const int64_t rows = tile.num_tokens * group_;
    int32_t begin = kSegment, end = 0;
    for (int64_t r = 0; r < rows; r++) {
      const int64_t position = step_.positions[tile.first_token + r / group_];
      scratch.begin[r] = static_cast<int32_t>(std::max<int64_t>(0, first_visible(position) - origin));
      scratch.end[r] = static_cast<int32_t>(std::min<int64_t>(kSegment, position + 1 - origin));
      if (scratch.begin[r] >= scratch.end[r]) continue;
      begin = std::min(begin, scratch.begin[r]);
      end = std::max(end, scratch.end[r]);
    }
    /* A little further than the segment goes, for the kernel to fetch ahead. */
    const int32_t* table = step_.block_table(tile.seq) + segment * kSegmentBlocks;
    const int64_t last = step_.positions[tile.first_token + tile.num_tokens - 1];
    const int64_t num_blocks = std::min(kSegmentBlocks + kBlocksAhead, (last - origin) / kKvBlock + 1);
    for (int64_t b = begin / kKvBlock; b < num_blocks; b++)
      scratch.blocks[b] = cache.block_offset(table[b], tile.kv_head);
    context_.kernels.attend({
        .queries = scratch.queries,
        .num_rows = static_cast<int32_t>(rows),
        .head_dim = static_cast<int32_t>(head_dim_),
        .score_scale = op_.scale * cache.key_scale * unit_,
        .dtype = cache.dtype,
        .keys = cache.keys.data,
        .values = cache.values.data,
        .blocks = scratch.blocks,
        .num_blocks = static_cast<int32_t>(num_blocks),
        .begin = scratch.begin,
        .end = scratch.end,
        .begin_position = begin,
        .end_position = end,
        .scores = scratch.scores,
        .decoded = scratch.decoded,
        .max = result.max,
        .sum = result.sum,
        .output = result.output,
    });
  }

  int64_t head_of(const Tile& tile, int64_t row) const { return tile.kv_head * group_ + row % group_; }

  /* A sink is a logit without a value. */
  void start_row(int64_t head, const Partial& running) const {
    const bool has_sink = op_.sinks.data != nullptr;
    *running.max = has_sink ? op_.sinks[head] : -std::numeric_limits<float>::infinity();
    *running.sum = has_sink ? 1.0f : 0.0f;
    std::fill_n(running.output, head_dim_, 0.0f);
  }
  void merge_row(const Partial& running, const Partial& segment) const {
    context_.kernels.merge_segment(running.max, running.sum, running.output, *segment.max, *segment.sum, segment.output,
                                   static_cast<int32_t>(head_dim_));
  }
  void finish_row(int64_t token, int64_t head, const Partial& running) const {
    float* output = op_.output + (token * op_.num_heads + head) * head_dim_;
    context_.kernels.scale(running.output, op_.cache.value_scale * unit_ / *running.sum, output, head_dim_);
  }

  const Attention& op_;
  const OpContext& context_;
  const StepInputs& step_;
  const int64_t head_dim_ = op_.cache.head_dim;
  const int64_t kv_heads_ = op_.cache.num_kv_heads;
  const int64_t group_ = group_size(op_);
  const float unit_ = op_.cache.dtype == KvDType::kF8E4M3 ? kF8Unit : 1.0f;
  Scratch shared_;
  uint64_t thread_bytes_ = 0;
  uint8_t* threads_ = nullptr;
};

}  // namespace

void run(const Attention& op, const OpContext& context) { AttentionRun(op, context).run(); }

uint64_t workspace_bytes(const Attention& op, const StepLimits& limits, uint32_t num_threads) {
  return AttentionRun::workspace_bytes(op, limits, num_threads);
}

}  // namespace moe
