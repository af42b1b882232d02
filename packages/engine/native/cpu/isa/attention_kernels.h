/*
 * One segment of attention over cache blocks in pairs (kernels.h says how they lie). Included once per instruction set
 * after matmul_kernels.h.
 *
 * Scores come out sixteen positions at a time: a vector of a key block holds one pair of columns of all its positions,
 * and meets that pair of a query's columns, broadcast. A vector of values holds sixteen columns of a pair of positions,
 * and meets the pair's weights, broadcast. So nothing is ever summed over lanes; each score runs over the columns and
 * each output over the positions in ascending order, and how many rows shared a block cannot be seen in the result.
 *
 * How pairs are multiplied is said by a Products, of which there is one per type of the cache:
 *   Pairs, load          sixteen pairs as they come from the cache
 *   store_query          sixteen columns of a query as dot() wants them, eight bytes to a pair, pairs `stride` apart
 *   dot                  sum + pair of a query * pairs of keys
 *   kWeightBytes         of one position's softmax weight
 *   store_weights        sixteen weights; answers with what was stored
 *   accumulate           sum + pair of weights * pairs of values
 *   first, second        pairs without their other halves
 */
namespace moe::MOE_ISA {

/* Blocks that meet all rows at once: few enough that their keys or values stay in the first-level cache meanwhile. */
constexpr int32_t kBlockTile = kDecodedBlocks;

constexpr int64_t kQueryPairBytes = 4 * 2;

struct Bf16Pairs {
  static constexpr int64_t kBytes = 2;
  static inline void load(const uint8_t* p, F* even, F* odd) { load_bf16_pairs(p, even, odd); }
};
struct F8Pairs {
  static constexpr int64_t kBytes = 1;
  static inline void load(const uint8_t* p, F* even, F* odd) { load_f8_pairs(p, even, odd); }
};

/* Everything in float32. */
template <class Stored>
struct F32Products {
  struct Pairs {
    F even, odd;
  };
  static constexpr int64_t kBytes = Stored::kBytes;
  static constexpr int64_t kWeightBytes = 4;

  static inline Pairs load(const uint8_t* p) {
    Pairs x;
    Stored::load(p, &x.even, &x.odd);
    return x;
  }
  static inline void store_query(F x, uint8_t* pairs, int64_t stride) {
    float columns[16];
    store(columns, x);
    for (int i = 0; i < 8; i++) __builtin_memcpy(pairs + i * stride, columns + 2 * i, kQueryPairBytes);
  }
  static inline F add_pair(const uint8_t* pair, Pairs x, F sum) {
    const float* factors = reinterpret_cast<const float*>(pair);
    return fma(set1(factors[1]), x.odd, fma(set1(factors[0]), x.even, sum));
  }
  static inline F dot(const uint8_t* query, Pairs keys, F sum) { return add_pair(query, keys, sum); }
  static inline F accumulate(const uint8_t* weights, Pairs values, F sum) { return add_pair(weights, values, sum); }
  static inline F store_weights(uint8_t* weights, F x) {
    store(reinterpret_cast<float*>(weights), x);
    return x;
  }
  static inline Pairs first(Pairs x) { return {x.even, zero()}; }
  static inline Pairs second(Pairs x) { return {zero(), x.odd}; }
};

/* Bytes of keys, or of values, of one head in one block. */
template <class Products>
static inline int64_t block_bytes(int64_t head_dim) {
  return kKvBlock * head_dim * Products::kBytes;
}

/*
 * Queries as dot_blocks reads them: blocks of rows one after another as for_row_blocks makes them, within a block
 * [head_dim / 2 pairs, R rows, kQueryPairBytes].
 */
template <class Products>
static void store_queries(const float* const* queries, int32_t num_rows, int64_t head_dim, uint8_t* output) {
  for_row_blocks(num_rows, [&]<int R>(int32_t first) {
    for (int r = 0; r < R; r++) {
      uint8_t* pairs = output + first * head_dim / 2 * kQueryPairBytes + r * kQueryPairBytes;
      for (int64_t d = 0; d < head_dim; d += 16) {
        Products::store_query(load(queries[first + r] + d), pairs + d / 2 * R * kQueryPairBytes, R * kQueryPairBytes);
      }
    }
  });
}

/*
 * Blocks that meet all rows, and memory that will be needed soon, fetched in step with them: cache blocks end before
 * hardware has learnt that they go on.
 */
struct KeyTile {
  int32_t count;
  const uint8_t* keys[kBlockTile];
  const uint8_t* next_keys[kBlockTile];
  const uint8_t* values[kBlockTile];
  int64_t fetch_bytes; /* of a pair of columns, or of sixteen pairs of values, in the cache */
};

/* scores[r * kSegment + 16 * c + j] = scale * dot(query r, position j of block first + c) for R rows and C blocks. */
template <class Products, int R, int C, bool kFetch>
static inline void dot_blocks(const uint8_t* queries, const KeyTile& tile, int32_t first, int64_t num_pairs,
                              float scale, float* scores) {
  constexpr int64_t kStep = 2 * kKvBlock * Products::kBytes;
  F sums[R * C];
  for (int i = 0; i < R * C; i++) sums[i] = zero();
  for (int64_t p = 0; p < num_pairs; p++) {
    typename Products::Pairs k[C];
    for (int c = 0; c < C; c++) {
      k[c] = Products::load(tile.keys[first + c] + p * kStep);
      if constexpr (kFetch) {
        prefetch_l2(tile.next_keys[first + c] + p * tile.fetch_bytes);
        prefetch_l2(tile.values[first + c] + p * tile.fetch_bytes);
      }
    }
    for (int r = 0; r < R; r++) {
      const uint8_t* query = queries + (p * R + r) * kQueryPairBytes;
      for (int c = 0; c < C; c++) sums[r * C + c] = Products::dot(query, k[c], sums[r * C + c]);
    }
  }
  const F factor = set1(scale);
  for (int r = 0; r < R; r++) {
    for (int c = 0; c < C; c++) store(scores + r * kSegment + (first + c) * kKvBlock, mul(sums[r * C + c], factor));
  }
}

/* dot_blocks for all blocks of a tile, as many at a time as there are accumulators for. */
template <class Products, int R, bool kFetch>
static inline void dot_tile(const uint8_t* queries, const KeyTile& tile, int64_t num_pairs, float scale,
                            float* scores) {
  constexpr int kBlocks = kTile / R < kBlockTile ? kTile / R : kBlockTile;
  int32_t b = 0;
  for (; b + kBlocks <= tile.count; b += kBlocks)
    dot_blocks<Products, R, kBlocks, kFetch>(queries, tile, b, num_pairs, scale, scores);
  for (; b < tile.count; b++) dot_blocks<Products, R, 1, kFetch>(queries, tile, b, num_pairs, scale, scores);
}

/*
 * scores become the weights exp(score - max) on [begin, end) of the row, and 0 in the rest of its first and last block,
 * in place. The sum is that of the weights as they were stored.
 */
template <class Products>
static inline void softmax_segment(float* scores, int32_t begin, int32_t end, float* max_out, float* sum_out) {
  const float lowest = -__builtin_inff();
  const int32_t first_block = begin / kKvBlock * kKvBlock;
  const auto is_whole = [&](int32_t j) { return j >= begin && j + kKvBlock <= end; };
  F largest = set1(lowest);
  for (int32_t j = first_block; j < end; j += kKvBlock) {
    const F x = load(scores + j);
    largest = max(largest, is_whole(j) ? x : keep(x, begin - j, end - j, lowest));
  }
  const float largest_of_all = reduce_max(largest);
  const F maximum = set1(largest_of_all);
  uint8_t* weights = reinterpret_cast<uint8_t*>(scores);
  F sum = zero();
  for (int32_t j = first_block; j < end; j += kKvBlock) {
    F e = exp16(sub(load(scores + j), maximum));
    if (!is_whole(j)) e = keep(e, begin - j, end - j, 0);
    sum = add(sum, Products::store_weights(weights + j * Products::kWeightBytes, e));
  }
  *max_out = largest_of_all;
  *sum_out = reduce_add(sum);
}

/* Values block by block, the first holding position 0, and as many blocks to fetch meanwhile. */
struct ValueTile {
  const uint8_t* const* values;
  const uint8_t* const* next_keys;
  int64_t fetch_bytes;
};

/* Of some rows, the first's position 0 first, for positions [begin, end). */
struct Weights {
  const uint8_t* weights;
  int32_t begin, end;
};

/* output[r][d] += weight * value over positions [begin, end), for R rows and 16 * C columns from `column` on. */
template <class Products, int R, int C, bool kFetch>
static inline void accumulate_columns(const ValueTile& tile, const Weights& x, int64_t column, float* output,
                                      int64_t head_dim) {
  constexpr int64_t kStep = 2 * kKvBlock * Products::kBytes;
  F sums[R * C];
  for (int r = 0; r < R; r++) {
    for (int c = 0; c < C; c++) sums[r * C + c] = load(output + r * head_dim + column + 16 * c);
  }
  const auto add_pair = [&](int32_t position, const auto& mask) {
    const int32_t block = position / kKvBlock, pair = position % kKvBlock / 2;
    const uint8_t* row = tile.values[block] + (pair * head_dim + column) * 2 * Products::kBytes;
    typename Products::Pairs v[C];
    for (int c = 0; c < C; c++) {
      v[c] = mask(Products::load(row + c * kStep));
      if constexpr (kFetch)
        prefetch_l2(tile.next_keys[block] + (column / 2 + c * (kKvBlock / 2) + pair) * tile.fetch_bytes);
    }
    const uint8_t* weights = x.weights + position / 2 * 2 * Products::kWeightBytes;
    for (int r = 0; r < R; r++) {
      for (int c = 0; c < C; c++)
        sums[r * C + c] = Products::accumulate(weights + r * kSegment * sizeof(float), v[c], sums[r * C + c]);
    }
  };
  /* A pair at the edge has a half that these rows do not see: 0 * it is nothing only if it is finite. */
  int32_t j = x.begin;
  if (j % 2 != 0 && j < x.end) {
    add_pair(j, [](auto v) { return Products::second(v); });
    j++;
  }
  for (; j + 2 <= x.end; j += 2) add_pair(j, [](auto v) { return v; });
  if (j < x.end) add_pair(j, [](auto v) { return Products::first(v); });
  for (int r = 0; r < R; r++) {
    for (int c = 0; c < C; c++) store(output + r * head_dim + column + 16 * c, sums[r * C + c]);
  }
}

template <class Products, int R, bool kFetch>
static inline void accumulate_values(const ValueTile& tile, const Weights& x, float* output, int64_t head_dim) {
  constexpr int kColumns = kTile / R < 8 ? kTile / R : 8;
  int64_t d = 0;
  for (; d + 16 * kColumns <= head_dim; d += 16 * kColumns)
    accumulate_columns<Products, R, kColumns, kFetch>(tile, x, d, output, head_dim);
  for (; d < head_dim; d += 16) accumulate_columns<Products, R, 1, kFetch>(tile, x, d, output, head_dim);
}

/*
 * Rows of a block may see different positions: what all see is read once for all, the rest row by row, each row in
 * ascending order. No pair of which a row sees both is split, since that may round differently. Positions count from
 * the segment's start.
 */
template <class Products, int R, bool kFetch>
static inline void accumulate_rows(const AttendArgs& a, const ValueTile& tile, int32_t row, int32_t tile_begin,
                                   int32_t tile_end) {
  int32_t first = tile_end, low = tile_begin, high = tile_end, last = tile_begin;
  for (int r = row; r < row + R; r++) {
    const int32_t begin = a.begin[r] > tile_begin ? a.begin[r] : tile_begin;
    const int32_t end = a.end[r] < tile_end ? a.end[r] : tile_end;
    first = begin < first ? begin : first;
    low = begin > low ? begin : low;
    high = end < high ? end : high;
    last = end > last ? end : last;
  }
  if (first < low) low += low % 2;
  if (high < last) high -= high % 2;
  const auto weights = [&](int r, int32_t from, int32_t to) -> Weights {
    return {reinterpret_cast<const uint8_t*>(a.scores + r * kSegment), from, to};
  };
  float* output = a.output + int64_t{row} * a.head_dim;
  const auto rest = [&](int r, int32_t from, int32_t to) {
    from = a.begin[r] > from ? a.begin[r] : from;
    to = a.end[r] < to ? a.end[r] : to;
    if (from < to)
      accumulate_values<Products, 1, false>(tile, weights(r, from, to), output + (r - row) * a.head_dim, a.head_dim);
  };
  if (low >= high) {
    for (int r = row; r < row + R; r++) rest(r, tile_begin, tile_end);
    return;
  }
  for (int r = row; r < row + R; r++) rest(r, tile_begin, low);
  accumulate_values<Products, R, kFetch>(tile, weights(row, low, high), output, a.head_dim);
  for (int r = row; r < row + R; r++) rest(r, high, tile_end);
}

/*
 * `read` answers with a tile's blocks as Products reads them: where the cache has them, or decoded. In the order of
 * time: scores of all blocks, softmax row by row, values of all blocks.
 */
template <class Products, class Read>
static inline void attend_with(const AttendArgs& a, const Read& read) {
  const int64_t head_dim = a.head_dim;
  const int32_t first = a.begin_position / kKvBlock, last = (a.end_position + kKvBlock - 1) / kKvBlock;
  /*
   * While keys are multiplied, the next ones and the values are fetched, which begins that much memory before it is
   * needed, whatever it holds. Few rows are done with it sooner than it comes: memory must not rest while values are
   * multiplied either, so the keys of the segment behind are fetched then. With more rows that only gets in the way.
   */
  const auto blocks_ahead = static_cast<int32_t>(kBlockTile * 2 / a.element_bytes());
  const int64_t fetch_bytes = 2 * kKvBlock * a.element_bytes();
  const bool waits_for_memory = a.num_rows <= 2 * a.element_bytes();
  const auto next_block = [&](int32_t block, int32_t instead) {
    return a.keys + a.blocks[block < a.num_blocks ? block : instead];
  };
  for (int32_t block = first; block < last; block += kBlockTile) {
    KeyTile tile;
    tile.count = last - block < kBlockTile ? last - block : kBlockTile;
    tile.fetch_bytes = fetch_bytes;
    for (int32_t b = 0; b < tile.count; b++) {
      tile.next_keys[b] = next_block(block + blocks_ahead + b, block + b);
      tile.values[b] = a.values + a.blocks[block + b];
    }
    read(a.keys, block, tile.count, tile.keys);
    for_row_blocks(a.num_rows, [&]<int R>(int32_t r) {
      const uint8_t* queries = a.queries + r * head_dim / 2 * kQueryPairBytes;
      float* scores = a.scores + r * kSegment + block * kKvBlock;
      if (r == 0) {
        dot_tile<Products, R, true>(queries, tile, head_dim / 2, a.score_scale, scores);
      } else {
        dot_tile<Products, R, false>(queries, tile, head_dim / 2, a.score_scale, scores);
      }
    });
  }
  for (int32_t r = 0; r < a.num_rows; r++) {
    if (a.begin[r] < a.end[r])
      softmax_segment<Products>(a.scores + r * kSegment, a.begin[r], a.end[r], a.max + r, a.sum + r);
    for (int64_t d = 0; d < head_dim; d += 16) store(a.output + r * head_dim + d, zero());
  }
  for (int32_t block = first; block < last; block += kBlockTile) {
    const int32_t count = last - block < kBlockTile ? last - block : kBlockTile;
    const uint8_t* values[kSegment / kKvBlock];
    const uint8_t* next_keys[kSegment / kKvBlock];
    read(a.values, block, count, values + block);
    for (int32_t b = block; b < block + count; b++) next_keys[b] = next_block(b + kSegment / kKvBlock, b);
    const ValueTile tile{values, next_keys, fetch_bytes};
    const int32_t begin = block * kKvBlock, end = (block + count) * kKvBlock;
    for_row_blocks(a.num_rows, [&]<int R>(int32_t r) {
      if (R <= 4 && r == 0 && waits_for_memory) {
        accumulate_rows<Products, R, true>(a, tile, r, begin, end);
      } else {
        accumulate_rows<Products, R, false>(a, tile, r, begin, end);
      }
    });
  }
}

/* Adds a segment's result to the running one. */
static void merge_segment(float* max_io, float* sum_io, float* output, float segment_max, float segment_sum,
                          const float* segment_output, int32_t head_dim) {
  const float maximum = *max_io > segment_max ? *max_io : segment_max;
  const float keep_factor = exp1(*max_io - maximum), add_factor = exp1(segment_max - maximum);
  *max_io = maximum;
  *sum_io = *sum_io * keep_factor + segment_sum * add_factor;
  for (int32_t d = 0; d < head_dim; d += 16) {
    store(output + d, fma(load(segment_output + d), set1(add_factor), mul(load(output + d), set1(keep_factor))));
  }
}

}  // namespace moe::MOE_ISA
