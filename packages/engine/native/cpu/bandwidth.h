#ifndef MOE_CPU_BANDWIDTH_H_
#define MOE_CPU_BANDWIDTH_H_

#include <cstdint>

namespace moe {

/*
 * Reads random pieces of a buffer of `total_bytes` until as many bytes were read, each piece shared by all threads, as
 * the weights of chosen experts are read. Returns bytes per second, the median of several passes; 0 when there is not
 * that much memory.
 */
double measure_bandwidth(uint32_t num_threads, uint64_t total_bytes, uint64_t piece_bytes);

}  // namespace moe

#endif  // MOE_CPU_BANDWIDTH_H_
