/* Order matters: the kernels are written on the vectors included before them. */
// clang-format off
#define MOE_ISA avx512_bf16
#include "kernels.h"
#include "vec_avx512.h"
#include "row_kernels.h"
#include "matmul_kernels.h"
#include "attention_kernels.h"
#include "attention_bf16.h"
#include "kernel_table.h"
// clang-format on

namespace moe {
const Kernels& avx512_bf16_kernels() { return avx512_bf16::kKernels; }
}  // namespace moe
