#ifndef MOE_CPU_CPU_FEATURES_H_
#define MOE_CPU_CPU_FEATURES_H_

#include <string>
#include <vector>

#include "isa/kernels.h"

namespace moe {

/* The processor's brand string, or its architecture where it has none. */
std::string cpu_brand();

/* Names of core's CpuFeature that this processor has and this system saves on a context switch. */
std::vector<std::string> cpu_features();

/* The widest kernels that these features allow. */
const Kernels& select_kernels(const std::vector<std::string>& features);

}  // namespace moe

#endif  // MOE_CPU_CPU_FEATURES_H_
