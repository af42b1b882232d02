// What the AVX2 files share.
#ifndef MOE_BACKEND_CPU_KERNELS_AVX2_TILES_H_
#define MOE_BACKEND_CPU_KERNELS_AVX2_TILES_H_

#include "isa_kernels.h"

namespace moe {

// NVFP4 weights and inputs; only for processors with AVX-VNNI. The same bits as the tile function that does without.
TileFn avxvnni_tile(int num_tokens);

}  // namespace moe

#endif  // MOE_BACKEND_CPU_KERNELS_AVX2_TILES_H_
