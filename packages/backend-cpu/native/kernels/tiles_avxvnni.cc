// NVFP4 weights and inputs for processors with AVX-VNNI and no AVX-512 (Alder Lake and later client processors):
// vpdpbusd adds four products of bytes to a word in one instruction.
#include <immintrin.h>

#include "avx2_tiles.h"
#include "isa_kernels.h"

namespace moe {
namespace {

#include "avx2_integer.inl"

inline __m256i dot(__m256i sum, __m256i w, __m256i x) {
#if defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(sum, w, x);
#else
  // The same instruction as AVX-512 encodes it: tests run this file on processors that have only that.
  return _mm256_dpbusd_epi32(sum, w, x);
#endif
}

struct VnniDot {
  static inline void chunk(const __m256i (&w)[2][4], const uint8_t* x, __m256i start, __m256i* p) {
    p[0] = p[1] = start;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i four = broadcast_word(x + 4 * i);
      p[0] = dot(p[0], w[0][i], four);
      p[1] = dot(p[1], w[1][i], four);
    }
  }
};

}  // namespace

TileFn avxvnni_tile(int num_tokens) { return select_integer_tile<VnniDot>(num_tokens); }

}  // namespace moe
