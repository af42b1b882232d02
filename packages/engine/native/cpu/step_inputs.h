#ifndef MOE_CPU_STEP_INPUTS_H_
#define MOE_CPU_STEP_INPUTS_H_

#include <array>
#include <cstdint>
#include <string>

namespace moe {

/* Native counterpart of src/device/step-inputs.ts: what the arrays hold and how they lie is said there. */
struct StepLimits {
  int64_t max_num_tokens = 0;
  int64_t max_num_seqs = 0;
  int64_t max_logit_rows = 0;
  int64_t max_blocks_per_seq = 0;
  int64_t max_adjustments = 0;
};

enum class StepField : uint32_t {
  kHeader,
  kTokenIds,
  kPositions,
  kSlots,
  kQueryStarts,
  kContextLengths,
  kBlockTables,
  kLogitRows,
  kTemperatures,
  kTopPs,
  kMinPs,
  kRepetitionPenalties,
  kPresencePenalties,
  kFrequencyPenalties,
  kTopKs,
  kTargets,
  kNumTopLogprobs,
  kCounters,
  kSeeds,
  kAdjustmentStarts,
  kAdjustments,
};
inline constexpr uint32_t kNumStepFields = 21;

/* Names as TypeScript has them, in order. */
extern const std::array<const char*, kNumStepFields> kStepFieldNames;

struct StepLayout {
  StepLimits limits;
  uint64_t byte_length = 0;
  std::array<uint64_t, kNumStepFields> offsets{};
};

StepLayout layout_step(const StepLimits& limits);

struct Adjustment {
  int32_t token;
  float bias;
  int32_t output_count;
  int32_t seen;
};

/* The inputs of one step, in place. */
struct StepInputs {
  StepInputs(const StepLayout& layout, const uint8_t* buffer);

  int64_t num_tokens, num_seqs, num_logit_rows;
  int64_t max_blocks_per_seq;
  const int32_t *token_ids, *positions, *slots, *query_starts, *context_lengths, *block_tables, *logit_rows;
  const float *temperatures, *top_ps, *min_ps, *repetition_penalties, *presence_penalties, *frequency_penalties;
  const int32_t *top_ks, *targets, *num_top_logprobs, *counters;
  const uint64_t* seeds;
  const int32_t* adjustment_starts;
  const Adjustment* adjustments;

  const int32_t* block_table(int64_t seq) const { return block_tables + seq * max_blocks_per_seq; }
};

/*
 * What a program does with step inputs, and the smallest bounds among its commands. Only what is used is checked, and
 * everything that is used as an index is.
 */
struct StepUse {
  int64_t vocab_size = INT64_MAX; /* of embeddings; INT64_MAX: token ids are not used */
  int64_t max_positions = INT64_MAX;
  int64_t num_slots = INT64_MAX;
  /* Attention. Block tables are read in blocks of the smallest block size, up to the smallest number of blocks. */
  bool uses_sequences = false;
  int64_t block_size = INT64_MAX;
  int64_t num_blocks = INT64_MAX;
  bool uses_logit_rows = false;
  int64_t sample_vocab_size = INT64_MAX; /* INT64_MAX: nothing is sampled */
  int64_t max_top_logprobs = INT64_MAX;
};

/* Says what is wrong with the inputs, in a sentence; empty = nothing. Allocates only then. */
std::string check_step(const StepInputs& step, const StepLimits& limits, const StepUse& use);

}  // namespace moe

#endif  // MOE_CPU_STEP_INPUTS_H_
