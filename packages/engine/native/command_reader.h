#ifndef MOE_COMMAND_READER_H_
#define MOE_COMMAND_READER_H_

#include <napi.h>

#include <memory>
#include <vector>

#include "cpu/commands.h"
#include "cpu/device_memory.h"
#include "cpu/step_inputs.h"

namespace moe {

/* Keeps alive what commands point to: JavaScript objects, and the memory behind ArrayBuffers of the device. */
struct Owners {
  std::vector<Napi::Reference<Napi::Value>> objects;
  std::vector<std::shared_ptr<const DeviceMemory>> memory;

  void add(Napi::Value object);
  void add_buffer(Napi::ArrayBuffer buffer);
};

struct ReadCommands {
  std::vector<Command> commands;
  Owners owners;
};

/*
 * Reads the commands of src/device/commands.ts. Throws a TypeError that names command and field; an error of a kernel
 * carries `code` MOE_DEVICE_KERNEL.
 */
ReadCommands read_commands(Napi::Array commands);

/* Reads StepLimits of src/device/step-inputs.ts. */
StepLimits read_limits(Napi::Value limits);

}  // namespace moe

#endif  // MOE_COMMAND_READER_H_
