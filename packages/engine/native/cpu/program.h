#ifndef MOE_CPU_PROGRAM_H_
#define MOE_CPU_PROGRAM_H_

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "commands.h"
#include "device_memory.h"
#include "step_inputs.h"

namespace moe {

/* A command that cannot run: a shape that does not fit its buffer, or a kernel that does not fit the command. */
class CommandError : public std::runtime_error {
 public:
  enum class Cause { kShape, kKernel };
  CommandError(Cause cause, const std::string& message) : std::runtime_error(message), cause(cause) {}
  const Cause cause;
};

/* A command list that was checked: from here on sizes are trusted. */
struct Program {
  std::vector<Command> commands;
  StepLayout layout;
  StepUse use;
  /* The most that any command needs. */
  uint64_t workspace_bytes = 0;
  /* Shared with other programs of the device. */
  std::shared_ptr<DeviceMemory> workspace;
};

/*
 * Checks every command against its buffers and the limits of a step, and counts scratch memory.
 *
 * Throws CommandError. `workspace` of the result is still empty.
 */
Program make_program(std::vector<Command> commands, const StepLimits& limits, uint32_t num_threads);

/* When a step ran, in nanoseconds of the steady clock. */
struct StepTimes {
  int64_t began = 0;
  int64_t ended = 0;
};

/* What came of a step. */
struct StepResult {
  bool ok = true;
  /* The command that failed; empty when the inputs were at fault. */
  std::string command;
  std::string message;
  /* Different experts that were chosen, added up over the layers. */
  int64_t experts_chosen = 0;
};

class ThreadPool;
struct Kernels;

/* Checks the step's inputs and runs all commands in order, on the calling thread and the pool. Allocates nothing unless
 * it fails. */
StepResult run_program(const Program& program, const uint8_t* step_buffer, ThreadPool& pool, const Kernels& kernels);

}  // namespace moe

#endif  // MOE_CPU_PROGRAM_H_
