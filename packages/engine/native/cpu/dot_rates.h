#ifndef MOE_CPU_DOT_RATES_H_
#define MOE_CPU_DOT_RATES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "isa/dot_loops.h"

namespace moe {

/* The loops that these features allow. */
DotLoops select_dot_loops(const std::vector<std::string>& features);

/* Operations per second of a loop on so many threads at once, in the best of several passes. */
double measure_dot_rate(uint32_t num_threads, DotLoop loop);

}  // namespace moe

#endif  // MOE_CPU_DOT_RATES_H_
