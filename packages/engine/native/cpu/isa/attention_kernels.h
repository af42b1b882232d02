/*
 * Blocks of dot products and one segment of attention. Included once per instruction set after row_kernels.h; see there.
 *
 * A block computes kTile dot products at a time: R query rows against kTile / R key rows, each in one accumulator of sixteen lanes
 * that runs over the columns in order and is then summed over lanes in reduce_add's order. Which R was taken cannot be seen in the result.
 */
namespace moe::MOE_ISA {

struct RowF32 {
  static constexpr int64_t kBytes = 4;
  static F load16(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
};
struct RowBf16 {
  static constexpr int64_t kBytes = 2;
  static F load16(const uint8_t* p) { return load_bf16(p); }
};
struct RowF8 {
  static constexpr int64_t kBytes = 1;
  static F load16(const uint8_t* p) { return load_f8(p); }
};

/* Positions that meet all rows at once; few enough that their keys or values stay in the first-level cache meanwhile. */
constexpr int32_t kPositionTile = 32;

/* How many rows ahead of the one being read the next are fetched. */
constexpr int32_t kPrefetchRows = 8;

/*
 * scores[r * score_stride + j] = dot(queries[r], key row j) * scale for R rows and j in [begin, end). Rows before `fetch_end` are fetched
 * ahead of time.
 */
template <class Row, int R>
static inline void dot_rows(const float* const* queries, int64_t width, const uint8_t* keys, const int64_t* offsets, int32_t begin,
                            int32_t end, int32_t fetch_end, float scale, float* scores, int64_t score_stride) {
  constexpr int kKeys = kTile / R;
  for (int32_t j = begin; j < end; j += kKeys) {
    const uint8_t* rows[kKeys];
    for (int k = 0; k < kKeys; k++) rows[k] = keys + offsets[j + k < end ? j + k : end - 1];
    for (int32_t ahead = j + kPrefetchRows; ahead < j + kPrefetchRows + kKeys && ahead < fetch_end; ahead++) {
      for (int64_t b = 0; b < width * Row::kBytes; b += 64) prefetch(keys + offsets[ahead] + b);
    }
    F sums[kTile];
    for (int i = 0; i < kTile; i++) sums[i] = zero();
    for (int64_t d = 0; d < width; d += 16) {
      F q[R];
      for (int r = 0; r < R; r++) q[r] = load(queries[r] + d);
      for (int k = 0; k < kKeys; k++) {
        const F x = Row::load16(rows[k] + d * Row::kBytes);
        for (int r = 0; r < R; r++) sums[r * kKeys + k] = fma(q[r], x, sums[r * kKeys + k]);
      }
    }
    float results[kTile];
    reduce_tile(sums, results);
    const int count = end - j < kKeys ? end - j : kKeys;
    for (int r = 0; r < R; r++) {
      for (int k = 0; k < count; k++) scores[r * score_stride + j + k] = results[r * kKeys + k] * scale;
    }
  }
}

template <class Row>
static void dot_all(const float* const* queries, int32_t num_rows, int64_t width, const uint8_t* keys, const int64_t* offsets,
                    int32_t begin, int32_t end, float scale, float* scores, int64_t score_stride) {
  for (int32_t tile = begin; tile < end; tile += kPositionTile) {
    const int32_t tile_end = tile + kPositionTile < end ? tile + kPositionTile : end;
    int32_t r = 0;
    const auto run = [&]<int R>() {
      for (; r + R <= num_rows; r += R) {
        dot_rows<Row, R>(queries + r, width, keys, offsets, tile, tile_end, r == 0 ? end : 0, scale, scores + r * score_stride, score_stride);
      }
    };
    if constexpr (kMaxTileRows >= 4) run.template operator()<4>();
    run.template operator()<2>();
    run.template operator()<1>();
  }
}

/* output[r][d] += sum over j in [begin, end) of weights[r][j] * value row j [d], j ascending, for R rows and 16 * C columns. */
template <class Row, int R, int C>
static inline void accumulate_columns(const float* weights, const uint8_t* values, const int64_t* offsets, int32_t begin, int32_t end,
                                      float* output, int64_t head_dim) {
  F sums[R * C];
  for (int r = 0; r < R; r++) {
    for (int c = 0; c < C; c++) sums[r * C + c] = load(output + r * head_dim + 16 * c);
  }
  for (int32_t j = begin; j < end; j++) {
    F v[C];
    for (int c = 0; c < C; c++) v[c] = Row::load16(values + offsets[j] + 16 * c * Row::kBytes);
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
static inline void accumulate_values(const float* weights, const uint8_t* values, const int64_t* offsets, int32_t begin, int32_t end,
                                     float* output, int64_t head_dim) {
  constexpr int kColumns = kTile / R;
  int64_t d = 0;
  for (; d + 16 * kColumns <= head_dim; d += 16 * kColumns) {
    accumulate_columns<Row, R, kColumns>(weights, values + d * Row::kBytes, offsets, begin, end, output + d, head_dim);
  }
  for (; d < head_dim; d += 16) {
    accumulate_columns<Row, R, 1>(weights, values + d * Row::kBytes, offsets, begin, end, output + d, head_dim);
  }
}

/*
 * Rows of a block may see different positions: what all see is read once for all, the rest row by row, each row in ascending order.
 */
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
      accumulate_values<Row, 1>(a.scores + r * kSegment, a.values, a.offsets, from, to, a.output + int64_t{r} * a.head_dim, a.head_dim);
    }
  };
  if (R == 1 || low >= high) {
    for (int r = row; r < row + R; r++) rest(r, tile_begin, tile_end);
    return;
  }
  for (int r = row; r < row + R; r++) rest(r, tile_begin, low);
  accumulate_values<Row, R>(a.scores + row * kSegment, a.values, a.offsets, low, high, a.output + int64_t{row} * a.head_dim, a.head_dim);
  for (int r = row; r < row + R; r++) rest(r, high, tile_end);
}

/* scores become exp(score - max) on [begin, end) of the row. */
static inline void softmax_segment(float* scores, int32_t begin, int32_t end, float* max_out, float* sum_out) {
  const float lowest = -__builtin_inff();
  const int32_t first_block = begin / 16 * 16;
  F largest = set1(lowest);
  for (int32_t j = first_block; j < end; j += 16) largest = max(largest, keep(load(scores + j), begin - j, end - j, lowest));
  const float maximum = reduce_max(largest);
  F sum = zero();
  for (int32_t j = first_block; j < end; j += 16) {
    const F e = keep(exp16(sub(load(scores + j), set1(maximum))), begin - j, end - j, 0);
    sum = add(sum, e);
    store(scores + j, e);
  }
  *max_out = maximum;
  *sum_out = reduce_add(sum);
}

template <class Row>
static void attend_rows(const AttendArgs& a) {
  dot_all<Row>(a.queries, a.num_rows, a.head_dim, a.keys, a.offsets, a.begin_position, a.end_position, a.score_scale, a.scores, kSegment);
  for (int32_t r = 0; r < a.num_rows; r++) {
    if (a.begin[r] < a.end[r]) softmax_segment(a.scores + r * kSegment, a.begin[r], a.end[r], a.max + r, a.sum + r);
    float* output = a.output + int64_t{r} * a.head_dim;
    for (int32_t d = 0; d < a.head_dim; d += 16) store(output + d, zero());
  }
  for (int32_t j = a.begin_position; j < a.end_position; j += kPositionTile) {
    const int32_t end = j + kPositionTile < a.end_position ? j + kPositionTile : a.end_position;
    int32_t r = 0;
    if constexpr (kMaxTileRows >= 4) {
      for (; r + 4 <= a.num_rows; r += 4) accumulate_block<Row, 4>(a, r, j, end);
    }
    for (; r + 2 <= a.num_rows; r += 2) accumulate_block<Row, 2>(a, r, j, end);
    for (; r < a.num_rows; r++) accumulate_block<Row, 1>(a, r, j, end);
  }
}

static void attend(const AttendArgs& args) {
  if (args.dtype == KvDType::kBf16) {
    attend_rows<RowBf16>(args);
  } else {
    attend_rows<RowF8>(args);
  }
}

static void merge_segment(float* max_io, float* sum_io, float* output, float segment_max, float segment_sum, const float* segment_output,
                          int32_t head_dim) {
  const float maximum = *max_io > segment_max ? *max_io : segment_max;
  const float keep_factor = exp1(*max_io - maximum), add_factor = exp1(segment_max - maximum);
  *max_io = maximum;
  *sum_io = *sum_io * keep_factor + segment_sum * add_factor;
  for (int32_t d = 0; d < head_dim; d += 16) {
    store(output + d, fma(load(segment_output + d), set1(add_factor), mul(load(output + d), set1(keep_factor))));
  }
}

static void matmul_f32(const float* input, int64_t input_stride, int32_t num_rows, const float* weight, int64_t num_outputs, int64_t width,
                       float* output, int64_t output_stride) {
  const float* rows[kMaxQueryRows];
  for (int32_t r = 0; r < num_rows; r++) rows[r] = input + r * input_stride;
  const int64_t whole = width / 16 * 16;
  for (int64_t n = 0; n < num_outputs; n += kTile) {
    const int32_t count = static_cast<int32_t>(num_outputs - n < kTile ? num_outputs - n : kTile);
    int64_t offsets[kTile];
    for (int32_t k = 0; k < count; k++) offsets[k] = (n + k) * width * 4;
    dot_all<RowF32>(rows, num_rows, whole, reinterpret_cast<const uint8_t*>(weight), offsets, 0, count, 1, output + n, output_stride);
  }
  for (int64_t d = whole; d < width; d++) {
    for (int32_t r = 0; r < num_rows; r++) {
      for (int64_t n = 0; n < num_outputs; n++) output[r * output_stride + n] += rows[r][d] * weight[n * width + d];
    }
  }
}

}  // namespace moe::MOE_ISA
