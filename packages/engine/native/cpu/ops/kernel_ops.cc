#include "kernel_ops.h"

#include <moe/status.hpp>

namespace moe {
namespace {

std::string run_kernel(const moe_kernel& kernel, const void* args, const OpContext& context) {
  if (kernel.self == nullptr) return "the kernel was disposed";
  moe_exec exec{};
  exec.size = sizeof exec;
  exec.pool = context.pool.c_pool();
  exec.workspace = context.workspace;
  exec.workspace_bytes = context.workspace_bytes;
  moe_error error = make_error();
  const int32_t status = kernel.run(kernel.self, args, &exec, &error);
  if (status == MOE_OK) return {};
  error.message[sizeof error.message - 1] = '\0';
  const std::string message = error.message[0] == '\0' ? "no message" : error.message;
  return std::string(kernel.name) + ": " + message + " (status " + std::to_string(status) + ")";
}

uint64_t kernel_workspace(const moe_kernel& kernel, int64_t num_tokens, uint32_t num_threads) {
  return kernel.workspace_bytes(kernel.self, num_tokens, num_threads);
}

}  // namespace

std::string run(const Linear& op, const OpContext& context) {
  const int64_t rows = context.rows(op.rows);
  if (rows == 0) return {};
  moe_linear_args args{};
  args.size = sizeof args;
  args.input_dtype = MOE_F32;
  args.num_tokens = rows;
  args.in_features = static_cast<int32_t>(op.in_features);
  args.out_features = static_cast<int32_t>(op.out_features);
  args.input = op.input.data;
  args.input_stride = op.in_features;
  args.output = op.output.data;
  args.output_stride = op.out_features;
  args.accumulate = op.accumulate ? 1 : 0;
  return run_kernel(*op.kernel, &args, context);
}

std::string run(const Experts& op, const OpContext& context) {
  if (context.step.num_tokens == 0) return {};
  moe_experts_args args{};
  args.size = sizeof args;
  args.input_dtype = MOE_F32;
  args.num_tokens = context.step.num_tokens;
  args.top_k = static_cast<int32_t>(op.top_k);
  args.hidden_size = static_cast<int32_t>(op.hidden_size);
  args.hidden_states = op.input.data;
  args.hidden_stride = op.hidden_size;
  args.topk_slots = op.topk_slots.data;
  args.topk_weights = op.topk_weights.data;
  args.output = op.output.data;
  args.output_stride = op.hidden_size;
  args.accumulate = op.accumulate ? 1 : 0;
  return run_kernel(*op.kernel, &args, context);
}

uint64_t workspace_bytes(const Linear& op, const StepLimits& limits, uint32_t num_threads) {
  return kernel_workspace(*op.kernel, op.rows == RowCount::kTokens ? limits.max_num_tokens : limits.max_logit_rows,
                          num_threads);
}

uint64_t workspace_bytes(const Experts& op, const StepLimits& limits, uint32_t num_threads) {
  return kernel_workspace(*op.kernel, limits.max_num_tokens, num_threads);
}

}  // namespace moe
