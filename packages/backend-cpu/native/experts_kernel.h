// output[t] (+)= sum over j of topk_weights[t, j] * down_e(activation(gate_e(x_t), up_e(x_t))), e = topk_slots[t, j].
#ifndef MOE_BACKEND_CPU_EXPERTS_KERNEL_H_
#define MOE_BACKEND_CPU_EXPERTS_KERNEL_H_

#include <memory>
#include <string>
#include <vector>

#include "kernels/isa_kernels.h"
#include "moe/abi.h"
#include "packed_weights.h"

namespace moe {

struct ExpertsConfig {
  // Three matrices per expert: gate, up, down.
  std::shared_ptr<const PackedWeights> weights;
  const IsaKernels* isa;
  InputKind input;
  // Per matrix; used by kNvfp4 and kFp8Static only.
  std::vector<float> input_scales;
  // The most experts per token that a call may bring.
  int32_t top_k;
  Activation activation;
  std::string name;
};

// A moe_kernel of kind MOE_KERNEL_EXPERTS; its `self` owns the configuration. Throws std::bad_alloc.
moe_kernel make_experts_kernel(ExpertsConfig config);

}  // namespace moe

#endif  // MOE_BACKEND_CPU_EXPERTS_KERNEL_H_
