#ifndef MOE_CPU_OPS_SAMPLE_H_
#define MOE_CPU_OPS_SAMPLE_H_

#include "op_context.h"

namespace moe {

void run(const Sample& op, const OpContext& context);
uint64_t workspace_bytes(const Sample& op, const StepLimits& limits, uint32_t num_threads);

/* In [0, 1): the top 24 bits of splitmix64(splitmix64(seed) + counter) over 2^24. */
float sample_uniform(uint64_t seed, uint64_t counter);

}  // namespace moe

#endif  // MOE_CPU_OPS_SAMPLE_H_
