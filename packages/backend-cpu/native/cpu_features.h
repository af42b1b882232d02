// What this processor can run and this operating system saves and restores.
#ifndef MOE_BACKEND_CPU_CPU_FEATURES_H_
#define MOE_BACKEND_CPU_CPU_FEATURES_H_

#include "kernels/isa_kernels.h"

namespace moe {

bool supports(Isa isa);

// The table for `isa`, or null when this build or this processor does not have it.
const IsaKernels* find_kernels(Isa isa);

}  // namespace moe

#endif  // MOE_BACKEND_CPU_CPU_FEATURES_H_
