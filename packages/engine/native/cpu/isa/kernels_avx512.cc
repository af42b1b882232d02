/* Order matters: the kernels are written on the vectors included before them. */
// clang-format off
#include "kernels.h"
#include "vec_avx512.h"
#include "row_kernels.h"
#include "matmul_kernels.h"
#include "attention_kernels.h"
#include "attention_f32.h"
#include "kernel_table.h"
// clang-format on

namespace moe {
const Kernels& avx512_kernels() { return avx512::kKernels; }
}  // namespace moe
