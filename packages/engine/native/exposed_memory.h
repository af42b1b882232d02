#ifndef MOE_EXPOSED_MEMORY_H_
#define MOE_EXPOSED_MEMORY_H_

#include <napi.h>

#include <cstdint>
#include <memory>

#include "cpu/device_memory.h"

namespace moe {

/*
 * Device memory as an ArrayBuffer, or undefined when there is not that much.
 *
 * When an environment ends (process.exit in the middle of a step, say), Node.js frees external ArrayBuffers first and
 * asks us to stop afterwards. So the memory has two kinds of owners: the ArrayBuffer, and every program that points
 * into it.
 */
Napi::Value expose_memory(Napi::Env env, uint64_t bytes);

/* The memory behind an ArrayBuffer of expose_memory, by its address; null for any other. */
std::shared_ptr<const DeviceMemory> exposed_memory(const void* data);

}  // namespace moe

#endif  // MOE_EXPOSED_MEMORY_H_
