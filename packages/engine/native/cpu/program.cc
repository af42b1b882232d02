#include "program.h"

#include <algorithm>

#include "ops/attention.h"
#include "ops/kernel_ops.h"
#include "ops/route.h"
#include "ops/row_ops.h"
#include "ops/sample.h"

namespace moe {
namespace {

/* Sizes beyond this could overflow when they are multiplied; no real model comes near. */
constexpr int64_t kMaxSize = int64_t{1} << 31;

/* The checks of one command, and what they add to the program's demands. */
class Checker {
 public:
  Checker(const std::string& name, const StepLimits& limits, StepUse& use) : name_(name), limits_(limits), use_(use) {}

  void operator()(const Embed& op) {
    size("vocabSize", op.vocab_size);
    size("width", op.width);
    holds("table", op.table, {op.vocab_size, op.width});
    holds("output", op.output, {limits_.max_num_tokens, op.width});
    use_.vocab_size = std::min(use_.vocab_size, op.vocab_size);
  }
  void operator()(const RmsNorm& op) {
    size("width", op.width);
    holds("input", op.input, {most(op.rows), op.width});
    holds("weight", op.weight, {op.width});
    holds("output", op.output, {most(op.rows), op.width});
  }
  void operator()(const Linear& op) {
    size("inFeatures", op.in_features);
    size("outFeatures", op.out_features);
    holds("input", op.input, {most(op.rows), op.in_features});
    holds("output", op.output, {most(op.rows), op.out_features});
    kernel(*op.kernel, MOE_KERNEL_LINEAR, "linear");
  }
  void operator()(const HeadRmsNorm& op) {
    heads("tensor", op.tensor, op.row_width, op.column_offset, op.num_heads, op.head_dim);
    holds("weight", op.weight, {op.head_dim});
  }
  void operator()(const Rope& op) {
    heads("tensor", op.tensor, op.row_width, op.column_offset, op.num_heads, op.head_dim);
    size("rotaryDim", op.rotary_dim);
    require(op.rotary_dim % 2 == 0 && op.rotary_dim <= op.head_dim, "rotaryDim must be even and at most headDim " +
                                                                        std::to_string(op.head_dim) + ", got " +
                                                                        std::to_string(op.rotary_dim));
    size("maxPositions", op.max_positions);
    holds("table", op.table, {op.max_positions, op.rotary_dim});
    use_.max_positions = std::min(use_.max_positions, op.max_positions);
  }
  void operator()(const KvStore& op) {
    cache(op.cache);
    heads("tensor", op.tensor, op.row_width, op.key_offset, op.cache.num_kv_heads, op.cache.head_dim);
    heads("tensor", op.tensor, op.row_width, op.value_offset, op.cache.num_kv_heads, op.cache.head_dim);
    use_.num_slots = std::min(use_.num_slots, op.cache.num_blocks * op.cache.block_size);
  }
  void operator()(const Attention& op) {
    cache(op.cache);
    heads("queries", op.queries, op.row_width, op.query_offset, op.num_heads, op.cache.head_dim);
    holds("output", op.output, {limits_.max_num_tokens, op.num_heads, op.cache.head_dim});
    if (op.sinks.data != nullptr) holds("sinks", op.sinks, {op.num_heads});
    require(op.sliding_window >= 0, "slidingWindow must not be negative, got " + std::to_string(op.sliding_window));
    require(op.cache.head_dim % 16 == 0, "headDim must be a multiple of 16, got " + std::to_string(op.cache.head_dim));
    require(op.num_heads % op.cache.num_kv_heads == 0 && op.num_heads / op.cache.num_kv_heads <= kMaxQueryRows,
            "numHeads must be a multiple of numKvHeads " + std::to_string(op.cache.num_kv_heads) + ", at most " +
                std::to_string(kMaxQueryRows) + " times it, got " + std::to_string(op.num_heads));
    require(use_.block_size == INT64_MAX || use_.block_size == op.cache.block_size,
            "all layers share the block tables, so their blockSize must be equal: " + std::to_string(use_.block_size) +
                " and " + std::to_string(op.cache.block_size));
    use_.uses_sequences = true;
    use_.block_size = op.cache.block_size;
    use_.num_blocks = std::min(use_.num_blocks, op.cache.num_blocks);
  }
  void operator()(const Route& op) {
    size("hiddenSize", op.hidden_size);
    size("numExperts", op.num_experts);
    size("topK", op.top_k);
    const RoutingMethod& method = op.method;
    size("numGroups", method.num_groups);
    size("topkGroups", method.topk_groups);
    require(op.num_experts % method.num_groups == 0 && method.topk_groups <= method.num_groups,
            "numExperts " + std::to_string(op.num_experts) + " must be a multiple of numGroups " +
                std::to_string(method.num_groups) + ", and topkGroups " + std::to_string(method.topk_groups) +
                " at most numGroups");
    require(op.top_k <= op.num_experts / method.num_groups * method.topk_groups,
            "topK " + std::to_string(op.top_k) + " exceeds the number of experts to choose from");
    holds("input", op.input, {limits_.max_num_tokens, op.hidden_size});
    holds("weight", op.weight, {op.num_experts, op.hidden_size});
    if (op.bias.data != nullptr) holds("bias", op.bias, {op.num_experts});
    if (op.correction_bias.data != nullptr) holds("correctionBias", op.correction_bias, {op.num_experts});
    holds("topkIds", op.topk_ids, {limits_.max_num_tokens, op.top_k});
    holds("topkWeights", op.topk_weights, {limits_.max_num_tokens, op.top_k});
  }
  void operator()(const MapSlots& op) {
    size("topK", op.top_k);
    size("numExperts", op.num_experts);
    holds("topkIds", op.topk_ids, {limits_.max_num_tokens, op.top_k});
    holds("slots", op.slots, {op.num_experts});
    holds("topkSlots", op.topk_slots, {limits_.max_num_tokens, op.top_k});
  }
  void operator()(const Experts& op) {
    size("hiddenSize", op.hidden_size);
    size("topK", op.top_k);
    holds("input", op.input, {limits_.max_num_tokens, op.hidden_size});
    holds("topkSlots", op.topk_slots, {limits_.max_num_tokens, op.top_k});
    holds("topkWeights", op.topk_weights, {limits_.max_num_tokens, op.top_k});
    holds("output", op.output, {limits_.max_num_tokens, op.hidden_size});
    kernel(*op.kernel, MOE_KERNEL_EXPERTS, "experts");
  }
  void operator()(const GatedActivationCommand& op) {
    size("width", op.width);
    holds("input", op.input, {most(op.rows), 2, op.width});
    holds("output", op.output, {most(op.rows), op.width});
  }
  void operator()(const GatherRows& op) {
    size("width", op.width);
    holds("input", op.input, {limits_.max_num_tokens, op.width});
    holds("output", op.output, {limits_.max_logit_rows, op.width});
    use_.uses_logit_rows = true;
  }
  void operator()(const Sample& op) {
    size("vocabSize", op.vocab_size);
    require(op.max_top_logprobs >= 0,
            "maxTopLogprobs must not be negative, got " + std::to_string(op.max_top_logprobs));
    const int64_t rows = limits_.max_logit_rows;
    holds("logits", op.logits, {rows, op.vocab_size});
    holds("tokenIds", op.token_ids, {rows});
    holds("logprobs", op.logprobs, {rows});
    holds("ranks", op.ranks, {rows});
    holds("topIds", op.top_ids, {rows, op.max_top_logprobs});
    holds("topLogprobs", op.top_logprobs, {rows, op.max_top_logprobs});
    use_.sample_vocab_size = std::min(use_.sample_vocab_size, op.vocab_size);
    use_.max_top_logprobs = std::min(use_.max_top_logprobs, op.max_top_logprobs);
  }

 private:
  int64_t most(RowCount rows) const {
    return rows == RowCount::kTokens ? limits_.max_num_tokens : limits_.max_logit_rows;
  }

  void require(bool condition, const std::string& problem,
               CommandError::Cause cause = CommandError::Cause::kShape) const {
    if (!condition) throw CommandError(cause, name_ + ": " + problem + ".");
  }
  void size(const char* field, int64_t value) const {
    require(value > 0 && value < kMaxSize,
            std::string(field) + " must be positive and less than 2^31, got " + std::to_string(value));
  }

  template <class T>
  void holds(const char* field, const Span<T>& span, std::initializer_list<int64_t> shape) const {
    std::string text;
    double bytes = sizeof(T);
    for (const int64_t extent : shape) {
      text += (text.empty() ? "[" : ", ") + std::to_string(extent);
      bytes *= static_cast<double>(extent);
    }
    require(static_cast<double>(span.bytes) >= bytes, std::string(field) + " needs " +
                                                          std::to_string(static_cast<uint64_t>(bytes)) + " bytes for " +
                                                          text + "], its buffer has " + std::to_string(span.bytes));
  }
  template <class T>
  void heads(const char* field, const Span<T>& tensor, int64_t row_width, int64_t offset, int64_t num_heads,
             int64_t head_dim) const {
    size("rowWidth", row_width);
    size("numHeads", num_heads);
    size("headDim", head_dim);
    require(offset >= 0 && offset + num_heads * head_dim <= row_width,
            std::to_string(num_heads) + " heads of " + std::to_string(head_dim) + " from column " +
                std::to_string(offset) + " do not fit in rows of " + std::to_string(row_width));
    holds(field, tensor, {limits_.max_num_tokens, row_width});
  }
  void cache(const KvCache& cache) const {
    size("numBlocks", cache.num_blocks);
    require(cache.block_size == kKvBlock, "blockSize must be " + std::to_string(kKvBlock) + " on this device, got " +
                                              std::to_string(cache.block_size));
    size("numKvHeads", cache.num_kv_heads);
    size("headDim", cache.head_dim);
    require(cache.head_dim % 2 == 0, "headDim must be even, got " + std::to_string(cache.head_dim));
    require(cache.num_blocks * cache.block_size < kMaxSize, "the cache has 2^31 slots or more; slots are 32 bits wide");
    require(cache.key_scale > 0 && cache.value_scale > 0, "keyScale and valueScale must be positive");
    const int64_t block_bytes = cache.block_size * cache.head_dim * cache.element_bytes();
    holds("keys", cache.keys, {cache.num_blocks, cache.num_kv_heads, block_bytes});
    holds("values", cache.values, {cache.num_blocks, cache.num_kv_heads, block_bytes});
  }
  void kernel(const moe_kernel& kernel, uint32_t kind, const char* kind_name) const {
    constexpr auto kKernel = CommandError::Cause::kKernel;
    require(kernel.size >= sizeof(moe_kernel), "the kernel's struct is smaller than version 1 of moe/abi.h says",
            kKernel);
    require(kernel.kind == kind, std::string("the kernel ") + kernel.name + " is not of kind " + kind_name, kKernel);
  }

  const std::string& name_;
  const StepLimits& limits_;
  StepUse& use_;
};

/* Row operators need no scratch memory. */
template <class Op>
uint64_t workspace_of(const Op& op, const StepLimits& limits, uint32_t num_threads) {
  if constexpr (requires { workspace_bytes(op, limits, num_threads); }) return workspace_bytes(op, limits, num_threads);
  return 0;
}

template <class Op>
std::string run_operation(const Op& op, const OpContext& context) {
  if constexpr (std::is_same_v<decltype(run(op, context)), std::string>) {
    return run(op, context);
  } else {
    run(op, context);
    return {};
  }
}

}  // namespace

Program make_program(std::vector<Command> commands, const StepLimits& limits, uint32_t num_threads) {
  Program program;
  program.layout = layout_step(limits);
  for (const Command& command : commands) {
    std::visit(Checker(command.name, limits, program.use), command.operation);
    const uint64_t bytes =
        std::visit([&](const auto& op) { return workspace_of(op, limits, num_threads); }, command.operation);
    program.workspace_bytes = std::max(program.workspace_bytes, bytes);
  }
  program.commands = std::move(commands);
  return program;
}

StepResult run_program(const Program& program, const uint8_t* step_buffer, ThreadPool& pool, const Kernels& kernels) {
  const StepInputs step(program.layout, step_buffer);
  std::string problem = check_step(step, program.layout.limits, program.use);
  if (!problem.empty()) return {false, "", std::move(problem)};
  uint8_t* workspace = program.workspace == nullptr ? nullptr : program.workspace->data();
  StepCounters counters;
  const OpContext context{pool, kernels, step, workspace, program.workspace_bytes, counters};
  for (const Command& command : program.commands) {
    problem = std::visit([&](const auto& op) { return run_operation(op, context); }, command.operation);
    if (!problem.empty()) return {false, command.name, std::move(problem)};
  }
  return {true, {}, {}, counters.experts_chosen};
}

}  // namespace moe
