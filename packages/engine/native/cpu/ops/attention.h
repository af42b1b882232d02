#ifndef MOE_CPU_OPS_ATTENTION_H_
#define MOE_CPU_OPS_ATTENTION_H_

#include "op_context.h"

namespace moe {

void run(const Attention& op, const OpContext& context);
uint64_t workspace_bytes(const Attention& op, const StepLimits& limits, uint32_t num_threads);

}  // namespace moe

#endif  // MOE_CPU_OPS_ATTENTION_H_
