/*
 * Dot products of float rows. Included once per instruction set after row_kernels.h; see there.
 *
 * A block computes kTile dot products at a time: R input rows against kTile / R weight rows, each in one accumulator of
 * sixteen lanes that runs over the columns in a fixed order and is then summed over lanes in reduce_add's order. Which
 * R was taken cannot be seen in the result.
 */
namespace moe::MOE_ISA {

/* Calls body.operator()<R>(first row) for blocks of rows, the largest blocks first. */
template <class Body>
static inline void for_row_blocks(int32_t num_rows, const Body& body) {
  int32_t r = 0;
  if constexpr (kMaxTileRows >= 8) {
    for (; r + 8 <= num_rows; r += 8) body.template operator()<8>(r);
  }
  for (; r + 4 <= num_rows; r += 4) body.template operator()<4>(r);
  for (; r + 2 <= num_rows; r += 2) body.template operator()<2>(r);
  for (; r < num_rows; r++) body.template operator()<1>(r);
}

/* output[r * output_stride + k] for R input rows and the weight rows k < count <= kTile / R; width in whole sixteens,
 * rows of the weight row_width apart. */
template <int R>
static inline void dot_rows(const float* input, int64_t input_stride, const float* weight, int64_t row_width,
                            int32_t count, int64_t width, float* output, int64_t output_stride) {
  constexpr int kRows = kTile / R;
  const float* rows[kRows];
  for (int k = 0; k < kRows; k++) rows[k] = weight + (k < count ? k : count - 1) * row_width;
  F sums[kTile];
  for (int i = 0; i < kTile; i++) sums[i] = zero();
  for (int64_t d = 0; d < width; d += 16) {
    /* Whichever side is shorter stays in registers. */
    if constexpr (R <= kRows) {
      F x[R];
      for (int r = 0; r < R; r++) x[r] = load(input + r * input_stride + d);
      for (int k = 0; k < kRows; k++) {
        const F w = load(rows[k] + d);
        for (int r = 0; r < R; r++) sums[r * kRows + k] = fma(x[r], w, sums[r * kRows + k]);
      }
    } else {
      F w[kRows];
      for (int k = 0; k < kRows; k++) w[k] = load(rows[k] + d);
      for (int r = 0; r < R; r++) {
        const F x = load(input + r * input_stride + d);
        for (int k = 0; k < kRows; k++) sums[r * kRows + k] = fma(x, w[k], sums[r * kRows + k]);
      }
    }
  }
  float results[kTile];
  reduce_tile(sums, results);
  for (int r = 0; r < R; r++) {
    for (int k = 0; k < count; k++) output[r * output_stride + k] = results[r * kRows + k];
  }
}

static void matmul_f32(const float* input, int64_t input_stride, int32_t num_rows, const float* weight,
                       int64_t num_outputs, int64_t width, float* output, int64_t output_stride) {
  const int64_t whole = width / 16 * 16;
  for (int64_t n = 0; n < num_outputs; n += kTile) {
    const int64_t end = n + kTile < num_outputs ? n + kTile : num_outputs;
    for_row_blocks(num_rows, [&]<int R>(int32_t r) {
      constexpr int64_t kRows = kTile / R;
      for (int64_t k = n; k < end; k += kRows) {
        dot_rows<R>(input + r * input_stride, input_stride, weight + k * width, width,
                    static_cast<int32_t>(end - k < kRows ? end - k : kRows), whole, output + r * output_stride + k,
                    output_stride);
      }
    });
  }
  for (int64_t d = whole; d < width; d++) {
    for (int32_t r = 0; r < num_rows; r++) {
      for (int64_t n = 0; n < num_outputs; n++)
        output[r * output_stride + n] += input[r * input_stride + d] * weight[n * width + d];
    }
  }
}

}  // namespace moe::MOE_ISA
