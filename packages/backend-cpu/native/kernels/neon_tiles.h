// What the NEON files share.
#ifndef MOE_BACKEND_CPU_KERNELS_NEON_TILES_H_
#define MOE_BACKEND_CPU_KERNELS_NEON_TILES_H_

#include "isa_kernels.h"

namespace moe {

// NVFP4 weights and inputs; only for processors with FEAT_DotProd, or with FEAT_I8MM as well. The same bits as the tile
// function that does without.
TileFn neon_dotprod_tile(int num_tokens);
TileFn neon_i8mm_tile(int num_tokens);

}  // namespace moe

#endif  // MOE_BACKEND_CPU_KERNELS_NEON_TILES_H_
