/* Order matters: the kernels are written on the vectors included before them. */
// clang-format off
#include "kernels.h"
#include "vec_neon.h"
#include "row_kernels.h"
#include "matmul_kernels.h"
#include "attention_kernels.h"
#include "attention_f32.h"
#include "kernel_table.h"
// clang-format on

namespace moe {
const Kernels& neon_kernels() { return neon::kKernels; }
}  // namespace moe
