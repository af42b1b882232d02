/*
 * Blocks of dot products and one segment of attention. Included once per instruction set after row_kernels.h; see
 * there.
 *
 * A block computes kTile dot products at a time: R query rows against kTile / R key rows, each in one accumulator of
 * sixteen lanes that runs over the columns in a fixed order and is then summed over lanes in reduce_add's order. Which
 * R was taken cannot be seen in the result. Rows are read 32 columns at a time, in the order that is cheapest for their
 * type (kInPairs).
 */
namespace moe::MOE_ISA {

struct RowF32 {
  static constexpr int64_t kBytes = 4;
  static constexpr bool kInPairs = false;
  static inline F load16(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
  static inline void load32(const uint8_t* p, F* a, F* b) {
    *a = load16(p);
    *b = load16(p + 64);
  }
};
struct RowBf16 {
  static constexpr int64_t kBytes = 2;
  static constexpr bool kInPairs = true;
  static inline F load16(const uint8_t* p) { return load_bf16(p); }
  static inline void load32(const uint8_t* p, F* a, F* b) { load_bf16_pairs(p, a, b); }
};
struct RowF8 {
  static constexpr int64_t kBytes = 1;
  static constexpr bool kInPairs = false;
  static inline F load16(const uint8_t* p) { return load_f8(p); }
  static inline void load32(const uint8_t* p, F* a, F* b) {
    *a = load_f8(p);
    *b = load_f8(p + 16);
  }
};

/* Positions that meet all rows at once; few enough that their keys or values stay in the first-level cache meanwhile.
 */
constexpr int32_t kPositionTile = 32;

/* How many key rows ahead of the one being read the next are fetched: cache blocks end before hardware has learnt that
 * they go on. */
constexpr int32_t kPrefetchRows = 16;

/* Calls body.operator()<R>(first row) for blocks of rows, the largest blocks first. */
template <class Body>
static inline void for_row_blocks(int32_t num_rows, const Body& body) {
  int32_t r = 0;
  if constexpr (kMaxTileRows >= 8) {
    for (; r + 8 <= num_rows; r += 8) body.template operator()<8>(r);
  }
  if constexpr (kMaxTileRows >= 4) {
    for (; r + 4 <= num_rows; r += 4) body.template operator()<4>(r);
  }
  for (; r + 2 <= num_rows; r += 2) body.template operator()<2>(r);
  for (; r < num_rows; r++) body.template operator()<1>(r);
}

/* What to fetch ahead of time while dot products run: key rows before `end`, and the value rows that will be needed
 * next. */
struct Fetch {
  int32_t end;
  const uint8_t* values; /* may be null */
};

/* scores[r * score_stride + j] = dot(queries[r], key row j) for R rows and j in [begin, end). */
template <class Row, int R>
static inline void dot_rows(const float* const* queries, int64_t width, const uint8_t* keys, const int64_t* offsets,
                            int32_t begin, int32_t end, Fetch fetch, float* scores, int64_t score_stride) {
  constexpr int kKeys = kTile / R;
  for (int32_t j = begin; j < end; j += kKeys) {
    const uint8_t* rows[kKeys];
    for (int k = 0; k < kKeys; k++) rows[k] = keys + offsets[j + k < end ? j + k : end - 1];
    for (int32_t row = j; row < j + kKeys && row < fetch.end; row++) {
      const bool has_key = row + kPrefetchRows < fetch.end;
      for (int64_t b = 0; b < width * Row::kBytes; b += 64) {
        if (has_key) prefetch(keys + offsets[row + kPrefetchRows] + b);
        if (fetch.values != nullptr) prefetch_l2(fetch.values + offsets[row] + b);
      }
    }
    F sums[kTile];
    for (int i = 0; i < kTile; i++) sums[i] = zero();
    int64_t d = 0;
    for (; d + 32 <= width; d += 32) {
      /* Whichever side is shorter stays in registers; each sum takes its two products in the same order. */
      if constexpr (R <= kKeys) {
        F q[2 * R];
        for (int r = 0; r < R; r++) {
          q[2 * r] = load(queries[r] + d);
          q[2 * r + 1] = load(queries[r] + d + 16);
        }
        for (int k = 0; k < kKeys; k++) {
          F x, y;
          Row::load32(rows[k] + d * Row::kBytes, &x, &y);
          for (int r = 0; r < R; r++) sums[r * kKeys + k] = fma(q[2 * r + 1], y, fma(q[2 * r], x, sums[r * kKeys + k]));
        }
      } else {
        F x[kKeys], y[kKeys];
        for (int k = 0; k < kKeys; k++) Row::load32(rows[k] + d * Row::kBytes, &x[k], &y[k]);
        for (int r = 0; r < R; r++) {
          const F q = load(queries[r] + d);
          for (int k = 0; k < kKeys; k++) sums[r * kKeys + k] = fma(q, x[k], sums[r * kKeys + k]);
        }
        for (int r = 0; r < R; r++) {
          const F q = load(queries[r] + d + 16);
          for (int k = 0; k < kKeys; k++) sums[r * kKeys + k] = fma(q, y[k], sums[r * kKeys + k]);
        }
      }
    }
    for (; d < width; d += 16) {
      for (int k = 0; k < kKeys; k++) {
        const F x = Row::load16(rows[k] + d * Row::kBytes);
        for (int r = 0; r < R; r++) sums[r * kKeys + k] = fma(load(queries[r] + d), x, sums[r * kKeys + k]);
      }
    }
    float results[kTile];
    reduce_tile(sums, results);
    if (end - j >= kKeys) {
      for (int r = 0; r < R; r++)
        __builtin_memcpy(scores + r * score_stride + j, results + r * kKeys, kKeys * sizeof(float));
    } else {
      for (int r = 0; r < R; r++) {
        for (int k = 0; k < end - j; k++) scores[r * score_stride + j + k] = results[r * kKeys + k];
      }
    }
  }
}

template <class Row>
static void dot_all(const float* const* queries, int32_t num_rows, int64_t width, const uint8_t* keys,
                    const int64_t* offsets, const uint8_t* values, int32_t begin, int32_t end, float* scores,
                    int64_t score_stride) {
  for (int32_t tile = begin; tile < end; tile += kPositionTile) {
    const int32_t tile_end = tile + kPositionTile < end ? tile + kPositionTile : end;
    for_row_blocks(num_rows, [&]<int R>(int32_t r) {
      dot_rows<Row, R>(queries + r, width, keys, offsets, tile, tile_end,
                       r == 0 ? Fetch{end, values} : Fetch{0, nullptr}, scores + r * score_stride, score_stride);
    });
  }
}

/* output[r][d] += sum over j in [begin, end) of weights[r][j] * value row j [d], j ascending, for R rows and 16 * C
 * columns. */
template <class Row, int R, int C>
static inline void accumulate_columns(const float* weights, const uint8_t* values, const int64_t* offsets,
                                      int32_t begin, int32_t end, float* output, int64_t head_dim) {
  F sums[R * C];
  for (int r = 0; r < R; r++) {
    for (int c = 0; c < C; c++) sums[r * C + c] = load(output + r * head_dim + 16 * c);
  }
  for (int32_t j = begin; j < end; j++) {
    const uint8_t* row = values + offsets[j];
    F v[C];
    if constexpr (C == 1) {
      v[0] = Row::load16(row);
    } else {
      for (int c = 0; c < C; c += 2) Row::load32(row + 16 * c * Row::kBytes, &v[c], &v[c + 1]);
    }
    for (int r = 0; r < R; r++) {
      const F w = set1(weights[r * kSegment + j]);
      for (int c = 0; c < C; c++) sums[r * C + c] = fma(w, v[c], sums[r * C + c]);
    }
  }
  for (int r = 0; r < R; r++) {
    for (int c = 0; c < C; c++) store(output + r * head_dim + 16 * c, sums[r * C + c]);
  }
}

template <class Row, int R>
static inline void accumulate_values(const float* weights, const uint8_t* values, const int64_t* offsets, int32_t begin,
                                     int32_t end, float* output, int64_t head_dim) {
  constexpr int kColumns = kTile / R < 8 ? kTile / R : 8;
  int64_t d = 0;
  for (; d + 16 * kColumns <= head_dim; d += 16 * kColumns) {
    accumulate_columns<Row, R, kColumns>(weights, values + d * Row::kBytes, offsets, begin, end, output + d, head_dim);
  }
  for (; d + 32 <= head_dim; d += 32) {
    accumulate_columns<Row, R, 2>(weights, values + d * Row::kBytes, offsets, begin, end, output + d, head_dim);
  }
  for (; d < head_dim; d += 16) {
    accumulate_columns<Row, R, 1>(weights, values + d * Row::kBytes, offsets, begin, end, output + d, head_dim);
  }
}

/* Rows of a block may see different positions: what all see is read once for all, the rest row by row, each row in
 * ascending order. */
template <class Row, int R>
static inline void accumulate_block(const AttendArgs& a, int32_t row, int32_t tile_begin, int32_t tile_end) {
  int32_t low = tile_begin, high = tile_end;
  for (int r = row; r < row + R; r++) {
    low = a.begin[r] > low ? a.begin[r] : low;
    high = a.end[r] < high ? a.end[r] : high;
  }
  const auto rest = [&](int r, int32_t from, int32_t to) {
    from = a.begin[r] > from ? a.begin[r] : from;
    to = a.end[r] < to ? a.end[r] : to;
    if (from < to) {
      accumulate_values<Row, 1>(a.scores + r * kSegment, a.values, a.offsets, from, to,
                                a.output + int64_t{r} * a.head_dim, a.head_dim);
    }
  };
  if (low >= high) {
    for (int r = row; r < row + R; r++) rest(r, tile_begin, tile_end);
    return;
  }
  for (int r = row; r < row + R; r++) rest(r, tile_begin, low);
  accumulate_values<Row, R>(a.scores + row * kSegment, a.values, a.offsets, low, high,
                            a.output + int64_t{row} * a.head_dim, a.head_dim);
  for (int r = row; r < row + R; r++) rest(r, high, tile_end);
}

/* scores become exp(score * scale - max) on [begin, end) of the row, and 0 in the rest of its first and last sixteen.
 */
static inline void softmax_segment(float* scores, float scale, int32_t begin, int32_t end, float* max_out,
                                   float* sum_out) {
  const float lowest = -__builtin_inff();
  const int32_t first_block = begin / 16 * 16;
  const F factor = set1(scale);
  const auto is_whole = [&](int32_t j) { return j >= begin && j + 16 <= end; };
  F largest = set1(lowest);
  for (int32_t j = first_block; j < end; j += 16) {
    const F x = mul(load(scores + j), factor);
    largest = max(largest, is_whole(j) ? x : keep(x, begin - j, end - j, lowest));
  }
  const F maximum = set1(reduce_max(largest));
  F sum = zero();
  for (int32_t j = first_block; j < end; j += 16) {
    F e = exp16(sub(mul(load(scores + j), factor), maximum));
    if (!is_whole(j)) e = keep(e, begin - j, end - j, 0);
    sum = add(sum, e);
    store(scores + j, e);
  }
  *max_out = reduce_max(maximum);
  *sum_out = reduce_add(sum);
}

/* Reorders whole groups of 32 columns: in order to in pairs, or back. */
template <bool kSplit>
static inline void reorder(const float* input, float* output, int64_t width) {
  for (int64_t d = 0; d < width; d += 16) {
    if (d + 32 > width) {
      store(output + d, load(input + d));
      continue;
    }
    F x, y;
    if constexpr (kSplit) {
      split_pairs(load(input + d), load(input + d + 16), &x, &y);
    } else {
      join_pairs(load(input + d), load(input + d + 16), &x, &y);
    }
    store(output + d, x);
    store(output + d + 16, y);
    d += 16;
  }
}

template <class Row>
static void attend_rows(const AttendArgs& a) {
  const float* split[kMaxQueryRows];
  const float* const* queries = a.queries;
  if constexpr (Row::kInPairs) {
    /* The output rows hold nothing yet: they lend their place. */
    for (int32_t r = 0; r < a.num_rows; r++) {
      reorder<true>(a.queries[r], a.output + int64_t{r} * a.head_dim, a.head_dim);
      split[r] = a.output + int64_t{r} * a.head_dim;
    }
    queries = split;
  }
  dot_all<Row>(queries, a.num_rows, a.head_dim, a.keys, a.offsets, a.values, a.begin_position, a.end_position, a.scores,
               kSegment);
  for (int32_t r = 0; r < a.num_rows; r++) {
    if (a.begin[r] < a.end[r])
      softmax_segment(a.scores + r * kSegment, a.score_scale, a.begin[r], a.end[r], a.max + r, a.sum + r);
    float* output = a.output + int64_t{r} * a.head_dim;
    for (int32_t d = 0; d < a.head_dim; d += 16) store(output + d, zero());
  }
  for (int32_t j = a.begin_position; j < a.end_position; j += kPositionTile) {
    const int32_t end = j + kPositionTile < a.end_position ? j + kPositionTile : a.end_position;
    for_row_blocks(a.num_rows, [&]<int R>(int32_t r) { accumulate_block<Row, R>(a, r, j, end); });
  }
  if constexpr (Row::kInPairs) {
    for (int32_t r = 0; r < a.num_rows; r++) {
      float* output = a.output + int64_t{r} * a.head_dim;
      reorder<false>(output, output, a.head_dim);
    }
  }
}

static void attend(const AttendArgs& args) {
  if (args.dtype == KvDType::kBf16) {
    attend_rows<RowBf16>(args);
  } else {
    attend_rows<RowF8>(args);
  }
}

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

static void matmul_f32(const float* input, int64_t input_stride, int32_t num_rows, const float* weight,
                       int64_t num_outputs, int64_t width, float* output, int64_t output_stride) {
  const float* rows[kMaxQueryRows];
  for (int32_t r = 0; r < num_rows; r++) rows[r] = input + r * input_stride;
  const int64_t whole = width / 16 * 16;
  for (int64_t n = 0; n < num_outputs; n += kTile) {
    const int32_t count = static_cast<int32_t>(num_outputs - n < kTile ? num_outputs - n : kTile);
    int64_t offsets[kTile];
    for (int32_t k = 0; k < count; k++) offsets[k] = (n + k) * width * 4;
    dot_all<RowF32>(rows, num_rows, whole, reinterpret_cast<const uint8_t*>(weight), offsets, nullptr, 0, count,
                    output + n, output_stride);
  }
  for (int64_t d = whole; d < width; d++) {
    for (int32_t r = 0; r < num_rows; r++) {
      for (int64_t n = 0; n < num_outputs; n++) output[r * output_stride + n] += rows[r][d] * weight[n * width + d];
    }
  }
}

}  // namespace moe::MOE_ISA
