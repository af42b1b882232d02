#ifndef MOE_CPU_OPS_ROUTE_H_
#define MOE_CPU_OPS_ROUTE_H_

#include "op_context.h"

namespace moe {

void run(const Route& op, const OpContext& context);
void run(const MapSlots& op, const OpContext& context);
uint64_t workspace_bytes(const Route& op, const StepLimits& limits, uint32_t num_threads);

}  // namespace moe

#endif  // MOE_CPU_OPS_ROUTE_H_
