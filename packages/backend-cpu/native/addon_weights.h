// Packed weights as TypeScript holds them: made, filled, read back, lent as memory, disposed.
#ifndef MOE_BACKEND_CPU_ADDON_WEIGHTS_H_
#define MOE_BACKEND_CPU_ADDON_WEIGHTS_H_

#include <napi.h>

#include <memory>

#include "packed_weights.h"

namespace moe {

using WeightsPointer = std::shared_ptr<PackedWeights>;

// Throws Napi::TypeError for anything but weights of this addon that were not disposed.
WeightsPointer unwrap_weights(Napi::Value value);

void export_weights(Napi::Env env, Napi::Object exports);

}  // namespace moe

#endif  // MOE_BACKEND_CPU_ADDON_WEIGHTS_H_
