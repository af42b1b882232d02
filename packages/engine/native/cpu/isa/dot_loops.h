#ifndef MOE_CPU_ISA_DOT_LOOPS_H_
#define MOE_CPU_ISA_DOT_LOOPS_H_

#include <cstdint>

namespace moe {

/*
 * Products summed in registers, nothing read from memory: what a kernel with this arithmetic can reach at most. Runs so
 * many rounds and returns the operations done, two for a product and its sum.
 */
using DotLoop = uint64_t (*)(uint64_t rounds);

/* By what is multiplied; null where the processor has no instruction for it. */
struct DotLoops {
  DotLoop int8 = nullptr; /* whole numbers of 8 bits into sums of 32 */
  DotLoop bf16 = nullptr; /* pairs of bfloat16 into sums of float32 */
  DotLoop f32 = nullptr;
};

DotLoops portable_dot_loops();
#ifdef MOE_X86_64
/* AVX2, FMA. */
DotLoops avx2_dot_loops();
/* AVX-512 F, BW, VNNI, BF16. */
DotLoops avx512_dot_loops();
#endif
#ifdef MOE_ARM64
DotLoops neon_dot_loops();
/* dotprod. */
DotLoops neon_dotprod_dot_loops();
#endif

/*
 * `kChains` sums that do not wait for each other. `step` adds `kProducts` products to one of them, and hides it from the
 * compiler (see MOE_KEEP), which would otherwise see that all are the same. A template of each caller's own: its code is
 * for that caller's instruction set.
 */
template <int kChains, int kProducts, class Sum, class Step>
static inline uint64_t dot_loop(uint64_t rounds, const Step& step) {
  Sum sums[kChains] = {};
  for (uint64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 16
    for (int chain = 0; chain < kChains; chain++) step(sums[chain]);
  }
  return rounds * kChains * kProducts * 2;
}

}  // namespace moe

#endif  // MOE_CPU_ISA_DOT_LOOPS_H_
