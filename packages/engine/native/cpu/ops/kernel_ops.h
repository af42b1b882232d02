#ifndef MOE_CPU_OPS_KERNEL_OPS_H_
#define MOE_CPU_OPS_KERNEL_OPS_H_

#include <string>

#include "op_context.h"

namespace moe {

/* Operators that a plugin's kernel computes. The answer is empty, or what the kernel said went wrong. */
std::string run(const Linear& op, const OpContext& context);
std::string run(const Experts& op, const OpContext& context);

/* Bytes of scratch memory for the most rows that a step can bring. */
uint64_t workspace_bytes(const Linear& op, const StepLimits& limits, uint32_t num_threads);
uint64_t workspace_bytes(const Experts& op, const StepLimits& limits, uint32_t num_threads);

}  // namespace moe

#endif  // MOE_CPU_OPS_KERNEL_OPS_H_
