#ifndef MOE_DEVICE_OBJECT_H_
#define MOE_DEVICE_OBJECT_H_

#include <napi.h>

#include <map>
#include <memory>
#include <optional>

#include "command_reader.h"
#include "cpu/executor.h"

namespace moe {

/*
 * The JavaScript class CpuDevice: an executor, the programs made for it, and the promise of the step that runs.
 *
 *   new CpuDevice(numThreads, features)
 *   compile(commands, limits) → { id, numCommands, workspaceBytes }
 *   submit(id, stepBuffer) → Promise<void>; rejected with an Error whose `command` names who failed
 *   release(id), dispose()
 *   lastStep() → { beganMs, endedMs } of the last step that ended, on the steady clock
 *   expertsChosen() → different experts that were chosen, added up over layers and steps
 *
 * All members are touched on the JavaScript thread only, except result_ and times_, which pass from the executor's thread
 * through the thread-safe function.
 */
class DeviceObject : public Napi::ObjectWrap<DeviceObject> {
 public:
  static Napi::Function define(Napi::Env env);

  explicit DeviceObject(const Napi::CallbackInfo& info);
  ~DeviceObject() override;

 private:
  struct Entry {
    Program program;
    Owners owners;
  };

  Napi::Value compile(const Napi::CallbackInfo& info);
  Napi::Value submit(const Napi::CallbackInfo& info);
  Napi::Value release(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info);
  Napi::Value experts_chosen(const Napi::CallbackInfo& info);
  Napi::Value last_step(const Napi::CallbackInfo& info);

  Entry& entry(const Napi::Value& id);
  /* Ends the threads, waiting for the running step. */
  void shut_down();
  static void on_cleanup(void* self);
  /*
   * When an environment ends, hooks run in reverse order of their registration. The threads must end before a backend's
   * addon frees the kernels that they run: called for every new program, it moves our hook to the front.
   */
  void be_cleaned_up_first();
  void complete(Napi::Env env);

  napi_env env_;
  napi_threadsafe_function completed_ = nullptr;
  std::unique_ptr<Executor> executor_;
  std::map<int64_t, Entry> programs_;
  int64_t next_id_ = 1;
  /* The largest scratch memory made so far; programs that need no more share it. */
  std::shared_ptr<DeviceMemory> workspace_;
  std::optional<Napi::Promise::Deferred> running_;
  int64_t running_id_ = 0;
  /* Keeps the step buffer alive; made anew only when another buffer is submitted. */
  Owners step_buffer_;
  const void* step_data_ = nullptr;
  StepResult result_;
  StepTimes times_;
  StepTimes last_times_;
  int64_t experts_chosen_ = 0;
};

}  // namespace moe

#endif  // MOE_DEVICE_OBJECT_H_
