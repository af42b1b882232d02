// Whole-number tile functions for ARM processors with the dot product instructions (FEAT_DotProd: Cortex-A76, Neoverse
// N1, Apple M1 and later). sdot multiplies one word of a token, chosen by its place in a register, with four bytes of
// each of four rows: no broadcast is needed.
#include <arm_neon.h>

#include "isa_kernels.h"
#include "neon_tiles.h"

namespace moe {
namespace {

#include "neon_integer.inl"

struct Sdot {
  static inline int32x4_t chunk(const int8x16_t* w, int8x16_t x) {
    int32x4_t sum = vdupq_n_s32(0);
    sum = vdotq_laneq_s32(sum, w[0], x, 0);
    sum = vdotq_laneq_s32(sum, w[1], x, 1);
    sum = vdotq_laneq_s32(sum, w[2], x, 2);
    return vdotq_laneq_s32(sum, w[3], x, 3);
  }
};

}  // namespace

TileFn neon_dotprod_tile(int num_tokens) { return select_integer_tile<Sdot>(num_tokens); }

}  // namespace moe
