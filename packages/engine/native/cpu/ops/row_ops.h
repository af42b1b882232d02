#ifndef MOE_CPU_OPS_ROW_OPS_H_
#define MOE_CPU_OPS_ROW_OPS_H_

#include "op_context.h"

namespace moe {

/* Operators whose rows do not know of each other. */
void run(const Embed& op, const OpContext& context);
void run(const RmsNorm& op, const OpContext& context);
void run(const HeadRmsNorm& op, const OpContext& context);
void run(const Rope& op, const OpContext& context);
void run(const KvStore& op, const OpContext& context);
void run(const GatedActivationCommand& op, const OpContext& context);
void run(const GatherRows& op, const OpContext& context);

}  // namespace moe

#endif  // MOE_CPU_OPS_ROW_OPS_H_
