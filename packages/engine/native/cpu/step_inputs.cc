#include "step_inputs.h"

#include <cmath>

namespace moe {
namespace {

constexpr uint64_t kAlignment = 64;

/* First index whose value lies outside [low, high), or -1. */
int64_t first_outside(const int32_t* values, int64_t count, int64_t low, int64_t high) {
  for (int64_t i = 0; i < count; i++) {
    if (values[i] < low || values[i] >= high) return i;
  }
  return -1;
}

std::string outside(const char* field, int64_t index, int64_t value, int64_t low, int64_t high) {
  return std::string(field) + "[" + std::to_string(index) + "] is " + std::to_string(value) + ", expected at least " +
         std::to_string(low) + " and less than " + std::to_string(high);
}

std::string check_indices(const char* field, const int32_t* values, int64_t count, int64_t low, int64_t high) {
  const int64_t bad = first_outside(values, count, low, high);
  return bad < 0 ? std::string() : outside(field, bad, values[bad], low, high);
}

std::string check_counts(const StepInputs& step, const StepLimits& limits) {
  const auto check = [](const char* field, int64_t value, int64_t most) {
    if (value >= 0 && value <= most) return std::string();
    return std::string(field) + " is " + std::to_string(value) + ", expected 0 to " + std::to_string(most);
  };
  std::string problem = check("numTokens", step.num_tokens, limits.max_num_tokens);
  if (problem.empty()) problem = check("numSeqs", step.num_seqs, limits.max_num_seqs);
  if (problem.empty()) problem = check("numLogitRows", step.num_logit_rows, limits.max_logit_rows);
  return problem;
}

/* The tokens of the sequences follow one another, and each sequence's stand at the end of its context. */
std::string check_sequences(const StepInputs& step, const StepUse& use) {
  if (step.num_seqs == 0) return step.num_tokens == 0 ? std::string() : "there are tokens but no sequences";
  if (step.query_starts[0] != 0) return "queryStarts[0] is " + std::to_string(step.query_starts[0]) + ", expected 0";
  if (step.query_starts[step.num_seqs] != step.num_tokens) {
    return "queryStarts[" + std::to_string(step.num_seqs) + "] is " + std::to_string(step.query_starts[step.num_seqs]) +
           ", expected the number of tokens, " + std::to_string(step.num_tokens);
  }
  for (int64_t s = 0; s < step.num_seqs; s++) {
    const int64_t begin = step.query_starts[s], end = step.query_starts[s + 1];
    if (end <= begin || end > step.num_tokens)
      return outside("queryStarts", s + 1, end, begin + 1, step.num_tokens + 1);
    const int64_t context = step.context_lengths[s];
    const int64_t most = step.max_blocks_per_seq * use.block_size;
    if (context < end - begin || context > most) return outside("contextLengths", s, context, end - begin, most + 1);
    for (int64_t t = begin; t < end; t++) {
      const int64_t expected = context - end + t;
      if (step.positions[t] != expected) {
        return "positions[" + std::to_string(t) + "] is " + std::to_string(step.positions[t]) + ", expected " +
               std::to_string(expected) + ": the tokens of sequence " + std::to_string(s) + " are the last of its " +
               std::to_string(context) + " positions";
      }
    }
    const int64_t blocks = (context + use.block_size - 1) / use.block_size;
    const int64_t bad = first_outside(step.block_table(s), blocks, 0, use.num_blocks);
    if (bad >= 0)
      return outside("blockTables", s * step.max_blocks_per_seq + bad, step.block_table(s)[bad], 0, use.num_blocks);
  }
  return {};
}

std::string check_sampling(const StepInputs& step, const StepLimits& limits, const StepUse& use) {
  const int64_t rows = step.num_logit_rows;
  std::string problem = check_indices("targets", step.targets, rows, INT32_MIN, use.sample_vocab_size);
  if (problem.empty())
    problem = check_indices("numTopLogprobs", step.num_top_logprobs, rows, 0, use.max_top_logprobs + 1);
  if (problem.empty())
    problem = check_indices("adjustmentStarts", step.adjustment_starts, rows + 1, 0, limits.max_adjustments + 1);
  if (!problem.empty()) return problem;
  for (int64_t r = 0; r < rows; r++) {
    const auto number = [&](const char* field, float value, bool good) {
      if (!good) problem = std::string(field) + "[" + std::to_string(r) + "] is " + std::to_string(value);
    };
    const int32_t begin = step.adjustment_starts[r], end = step.adjustment_starts[r + 1];
    if (end < begin) return outside("adjustmentStarts", r + 1, end, begin, limits.max_adjustments + 1);
    for (int32_t a = begin; a < end; a++) {
      const int32_t token = step.adjustments[a].token;
      if (token < 0 || token >= use.sample_vocab_size)
        return outside("adjustment tokens", a, token, 0, use.sample_vocab_size);
    }
    if (step.targets[r] >= 0) continue;
    number("temperatures", step.temperatures[r], step.temperatures[r] >= 0 && std::isfinite(step.temperatures[r]));
    number("topPs", step.top_ps[r], !std::isnan(step.top_ps[r]));
    number("minPs", step.min_ps[r], !std::isnan(step.min_ps[r]));
    if (begin < end) number("repetitionPenalties", step.repetition_penalties[r], step.repetition_penalties[r] > 0);
    if (!problem.empty()) return problem;
  }
  return {};
}

}  // namespace

const std::array<const char*, kNumStepFields> kStepFieldNames = {
    "header",
    "tokenIds",
    "positions",
    "slots",
    "queryStarts",
    "contextLengths",
    "blockTables",
    "logitRows",
    "temperatures",
    "topPs",
    "minPs",
    "repetitionPenalties",
    "presencePenalties",
    "frequencyPenalties",
    "topKs",
    "targets",
    "numTopLogprobs",
    "counters",
    "seeds",
    "adjustmentStarts",
    "adjustments",
};

StepLayout layout_step(const StepLimits& limits) {
  const int64_t tokens = limits.max_num_tokens, seqs = limits.max_num_seqs, rows = limits.max_logit_rows;
  const int64_t bytes[kNumStepFields] = {
      64,
      4 * tokens,
      4 * tokens,
      4 * tokens,
      4 * (seqs + 1),
      4 * seqs,
      4 * seqs * limits.max_blocks_per_seq,
      4 * rows,
      4 * rows,
      4 * rows,
      4 * rows,
      4 * rows,
      4 * rows,
      4 * rows,
      4 * rows,
      4 * rows,
      4 * rows,
      4 * rows,
      8 * rows,
      4 * (rows + 1),
      16 * limits.max_adjustments,
  };
  StepLayout layout{.limits = limits};
  for (uint32_t i = 0; i < kNumStepFields; i++) {
    layout.offsets[i] = layout.byte_length;
    layout.byte_length += (static_cast<uint64_t>(bytes[i]) + kAlignment - 1) / kAlignment * kAlignment;
  }
  return layout;
}

StepInputs::StepInputs(const StepLayout& layout, const uint8_t* buffer) {
  const auto at = [&]<class T>(StepField field, const T*& pointer) {
    pointer = reinterpret_cast<const T*>(buffer + layout.offsets[static_cast<uint32_t>(field)]);
  };
  const int32_t* header;
  at(StepField::kHeader, header);
  num_tokens = header[0];
  num_seqs = header[1];
  num_logit_rows = header[2];
  max_blocks_per_seq = layout.limits.max_blocks_per_seq;
  at(StepField::kTokenIds, token_ids);
  at(StepField::kPositions, positions);
  at(StepField::kSlots, slots);
  at(StepField::kQueryStarts, query_starts);
  at(StepField::kContextLengths, context_lengths);
  at(StepField::kBlockTables, block_tables);
  at(StepField::kLogitRows, logit_rows);
  at(StepField::kTemperatures, temperatures);
  at(StepField::kTopPs, top_ps);
  at(StepField::kMinPs, min_ps);
  at(StepField::kRepetitionPenalties, repetition_penalties);
  at(StepField::kPresencePenalties, presence_penalties);
  at(StepField::kFrequencyPenalties, frequency_penalties);
  at(StepField::kTopKs, top_ks);
  at(StepField::kTargets, targets);
  at(StepField::kNumTopLogprobs, num_top_logprobs);
  at(StepField::kCounters, counters);
  at(StepField::kSeeds, seeds);
  at(StepField::kAdjustmentStarts, adjustment_starts);
  at(StepField::kAdjustments, adjustments);
}

std::string check_step(const StepInputs& step, const StepLimits& limits, const StepUse& use) {
  std::string problem = check_counts(step, limits);
  const auto indices = [&](const char* field, const int32_t* values, int64_t count, int64_t high) {
    if (problem.empty() && high != INT64_MAX) problem = check_indices(field, values, count, 0, high);
  };
  indices("tokenIds", step.token_ids, step.num_tokens, use.vocab_size);
  indices("positions", step.positions, step.num_tokens, use.max_positions);
  indices("slots", step.slots, step.num_tokens, use.num_slots);
  if (use.uses_logit_rows) indices("logitRows", step.logit_rows, step.num_logit_rows, step.num_tokens);
  if (problem.empty() && use.uses_sequences) problem = check_sequences(step, use);
  if (problem.empty() && use.sample_vocab_size != INT64_MAX) problem = check_sampling(step, limits, use);
  return problem;
}

}  // namespace moe
