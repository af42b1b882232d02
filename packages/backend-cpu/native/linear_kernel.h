// output[t, n] (+)= sum over k of input[t, k] * w[n, k] (+ bias[n]) for one or more modules that share an input.
#ifndef MOE_BACKEND_CPU_LINEAR_KERNEL_H_
#define MOE_BACKEND_CPU_LINEAR_KERNEL_H_

#include <memory>
#include <string>
#include <vector>

#include "kernels/isa_kernels.h"
#include "moe/abi.h"
#include "packed_weights.h"

namespace moe {

struct LinearConfig {
  std::shared_ptr<const PackedWeights> weights;
  const IsaKernels* isa;
  InputKind input;
  // Per module; used by kNvfp4 and kFp8Static only.
  std::vector<float> input_scales;
  std::string name;
};

// A moe_kernel of kind MOE_KERNEL_LINEAR; its `self` owns the configuration. Throws std::bad_alloc.
moe_kernel make_linear_kernel(LinearConfig config);

}  // namespace moe

#endif  // MOE_BACKEND_CPU_LINEAR_KERNEL_H_
