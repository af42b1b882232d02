#ifndef MOE_CPU_ISA_KERNELS_H_
#define MOE_CPU_ISA_KERNELS_H_

#include <cstdint>

namespace moe {

enum class KvDType : int32_t { kBf16 = 0, kF8E4M3 = 1 };

/*
 * Softmax over a context is summed in segments of this many positions, counted from position 0 of the sequence. Whoever
 * computes a segment, alone or with others, gets the same bits; segments are merged in ascending order.
 */
inline constexpr int32_t kSegment = 256;

/* Vocabulary rows are summarized in chunks of this many logits. */
inline constexpr int64_t kChunk = 64;

/* Query rows that attend() takes at once. */
inline constexpr int32_t kMaxQueryRows = 64;

/* e4m3 rows are read as half floats with the same bits, which is their value over this. */
inline constexpr float kF8Unit = 256;

struct GatedActivation {
  enum class Type : int32_t { kSilu, kSwiglu };
  Type type = Type::kSilu;
  float alpha = 0;
  float limit = 0;
};

/*
 * Positions of a cache block. Elements lie in pairs, so that sixteen neighbours of a vector take part in one
 * multiplication without being moved first: keys of one head as [head_dim / 2, kKvBlock, 2], two columns of each
 * position side by side; values as [kKvBlock / 2, head_dim, 2], two positions of each column.
 */
inline constexpr int32_t kKvBlock = 16;

/* Cache blocks whose narrow elements are decoded at once (AttendArgs.decoded). */
inline constexpr int32_t kDecodedBlocks = 4;

/* Blocks behind a segment of which attend() can make use, by fetching them early. */
inline constexpr int32_t kBlocksAhead = kSegment / kKvBlock;

/* One segment of one key/value head against up to kMaxQueryRows query rows. Positions count from the segment's start.
 */
struct AttendArgs {
  const uint8_t* queries; /* as prepare_queries stored them, for this num_rows */
  int32_t num_rows;
  int32_t head_dim;  /* a multiple of 16 */
  float score_scale; /* on q * k, as rows are read */
  KvDType dtype;
  const uint8_t* keys;
  const uint8_t* values;
  /* Byte offset of each block's head within keys and within values. Those behind the segment will be asked for next. */
  const int64_t* blocks;
  int32_t num_blocks;
  /* Row r sees positions [begin[r], end[r]); empty = the row is left out. */
  const int32_t* begin;
  const int32_t* end;
  /* Positions that any row sees lie in [begin_position, end_position). */
  int32_t begin_position;
  int32_t end_position;
  float* scores;    /* scratch, [num_rows, kSegment] */
  uint8_t* decoded; /* scratch, [kDecodedBlocks, kKvBlock, head_dim] bf16; e4m3 caches only */
  /* Results per row: largest score, sum of exp(score - max), sum of exp(score - max) * value. */
  float* max;
  float* sum;
  float* output; /* [num_rows, head_dim] */

  int64_t element_bytes() const { return dtype == KvDType::kBf16 ? 2 : 1; }
};

/*
 * The arithmetic of the operators, once per instruction set. Every function works on its arguments alone, so that a
 * row's bits do not depend on the rows beside it. Lengths need not be multiples of anything unless said.
 */
struct Kernels {
  const char* name;
  /* output = input / sqrt(mean(input^2) + eps) * weight; in place is fine. */
  void (*rms_norm)(const float* input, const float* weight, float* output, int64_t width, float eps);
  /* Rotates the first rotary_dim columns of one head by table = cosines, then sines. */
  void (*rope)(float* head, const float* table, int64_t rotary_dim, bool interleaved);
  void (*bf16_to_f32)(const uint16_t* input, float* output, int64_t count);
  /* Round to nearest, ties to even; NaN stays NaN. */
  void (*f32_to_bf16)(const float* input, uint16_t* output, int64_t count);
  /* e4m3(clamp(input / scale, ±448)), round to nearest, ties to even. */
  void (*f32_to_f8)(const float* input, uint8_t* output, int64_t count, float scale);
  void (*gated_activation)(const float* gate, const float* up, float* output, int64_t count,
                           GatedActivation activation);
  /* output[t * output_stride + n] = dot(input row t, weight row n), for num_rows <= kMaxQueryRows. */
  void (*matmul_f32)(const float* input, int64_t input_stride, int32_t num_rows, const float* weight,
                     int64_t num_outputs, int64_t width, float* output, int64_t output_stride);
  /* x = exp(x - max(x)); returns the sum. */
  float (*softmax_terms)(float* x, int64_t count);
  /* x = 1 / (1 + exp(-x)) */
  void (*sigmoid)(float* x, int64_t count);
  /* Query rows of head_dim floats in the form that attend reads; it takes as many bytes. */
  void (*prepare_queries)(const float* const* queries, int32_t num_rows, int32_t head_dim, uint8_t* output);
  void (*attend)(const AttendArgs& args);
  /* Adds a segment's result to the running one, in place: both are (max, sum, output[head_dim]). */
  void (*merge_segment)(float* max, float* sum, float* output, float segment_max, float segment_sum,
                        const float* segment_output, int32_t head_dim);
  /* output = input * factor */
  void (*scale)(const float* input, float factor, float* output, int64_t count);
  /* Largest value of every chunk of kChunk; returns the largest of all. NaN is passed over. */
  float (*chunk_max)(const float* x, int64_t count, float* maxima);
  /* Sum of exp((x - max) / temperature) per chunk of kChunk. */
  void (*chunk_exp_sums)(const float* x, int64_t count, float max, float temperature, float* sums);
  /* output = exp((x - max) / temperature) */
  void (*exp_terms)(const float* x, float* output, int64_t count, float max, float temperature);
  /* How many x exceed the value. */
  int64_t (*count_greater)(const float* x, int64_t count, float value);
};

const Kernels& portable_kernels();
#ifdef MOE_X86_64
/* AVX2, FMA, F16C. */
const Kernels& avx2_kernels();
/* AVX-512 F, BW, VL, DQ. */
const Kernels& avx512_kernels();
/* And VBMI, BF16: attention multiplies in bf16, the rest is the same. */
const Kernels& avx512_bf16_kernels();
#endif
#ifdef MOE_ARM64
/* What every 64-bit ARM processor has. */
const Kernels& neon_kernels();
#endif

}  // namespace moe

#endif  // MOE_CPU_ISA_KERNELS_H_
