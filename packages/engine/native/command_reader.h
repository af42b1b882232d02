#ifndef MOE_COMMAND_READER_H_
#define MOE_COMMAND_READER_H_

#include <napi.h>

#include <vector>

#include "cpu/commands.h"
#include "cpu/step_inputs.h"

namespace moe {

/* Commands as C++, and the JavaScript objects whose memory they point into. */
struct ReadCommands {
  std::vector<Command> commands;
  std::vector<Napi::Reference<Napi::Value>> owners;
};

/*
 * Reads the commands of src/device/commands.ts. Throws a TypeError that names command and field; an error of a kernel carries
 * `code` MOE_DEVICE_KERNEL.
 */
ReadCommands read_commands(Napi::Array commands);

/* Reads StepLimits of src/device/step-inputs.ts. */
StepLimits read_limits(Napi::Value limits);

}  // namespace moe

#endif  // MOE_COMMAND_READER_H_
