/* Order matters: the kernels are written on the vectors included before them. */
// clang-format off
#include "kernels.h"
#include "vec_portable.h"
#include "row_kernels.h"
#include "matmul_kernels.h"
#include "attention_kernels.h"
#include "attention_f32.h"
#include "kernel_table.h"
// clang-format on

namespace moe {
const Kernels& portable_kernels() { return portable::kKernels; }
}  // namespace moe
