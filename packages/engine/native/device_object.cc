#include "device_object.h"

#include <moe/napi_convert.hpp>
#include <string>
#include <utility>

#include "cpu/cpu_features.h"

namespace moe {
namespace {

Napi::Error error_with_code(Napi::Env env, const std::string& message, const char* code) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  return error;
}

constexpr int64_t kMaxThreads = 1024;

}  // namespace

Napi::Function DeviceObject::define(Napi::Env env) {
  return DefineClass(env, "CpuDevice",
                     {
                         InstanceMethod<&DeviceObject::compile>("compile"),
                         InstanceMethod<&DeviceObject::submit>("submit"),
                         InstanceMethod<&DeviceObject::release>("release"),
                         InstanceMethod<&DeviceObject::dispose>("dispose"),
                         InstanceMethod<&DeviceObject::experts_chosen>("expertsChosen"),
                         InstanceMethod<&DeviceObject::last_step>("lastStep"),
                     });
}

DeviceObject::DeviceObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DeviceObject>(info), env_(info.Env()) {
  const auto num_threads = static_cast<uint32_t>(get_int(info[0], "numThreads", 1, kMaxThreads));
  std::vector<std::string> features;
  const Napi::Object names = get_object(info[1], "features");
  for (uint32_t i = 0; i < names.As<Napi::Array>().Length(); i++)
    features.push_back(get_string(names.Get(i), "features"));
  const Kernels& kernels = select_kernels(features);

  const Napi::String resource = Napi::String::New(info.Env(), "moe:step");
  const napi_status status = napi_create_threadsafe_function(
      env_, nullptr, nullptr, resource, 0, 1, nullptr, nullptr, this,
      [](napi_env env, napi_value, void* context, void*) {
        if (env != nullptr) static_cast<DeviceObject*>(context)->complete(env);
      },
      &completed_);
  if (status != napi_ok) throw Napi::Error::New(info.Env(), "cannot create the completion of the CPU device");
  /* An idle device does not keep the process alive. */
  napi_unref_threadsafe_function(env_, completed_);
  executor_ = std::make_unique<Executor>(num_threads, kernels, [this](StepResult result, StepTimes times) {
    result_ = std::move(result);
    times_ = times;
    napi_call_threadsafe_function(completed_, nullptr, napi_tsfn_nonblocking);
  });
  napi_add_env_cleanup_hook(env_, &DeviceObject::on_cleanup, this);
  Value().Set("kernels", Napi::String::New(info.Env(), kernels.name));
}

DeviceObject::~DeviceObject() { shut_down(); }

void DeviceObject::on_cleanup(void* self) { static_cast<DeviceObject*>(self)->shut_down(); }

void DeviceObject::shut_down() {
  if (executor_ == nullptr) return;
  executor_.reset(); /* waits for the running step */
  napi_remove_env_cleanup_hook(env_, &DeviceObject::on_cleanup, this);
  napi_release_threadsafe_function(completed_, napi_tsfn_abort);
  completed_ = nullptr;
}

void DeviceObject::be_cleaned_up_first() {
  napi_remove_env_cleanup_hook(env_, &DeviceObject::on_cleanup, this);
  napi_add_env_cleanup_hook(env_, &DeviceObject::on_cleanup, this);
}

DeviceObject::Entry& DeviceObject::entry(const Napi::Value& id) {
  if (executor_ == nullptr) throw Napi::Error::New(env_, "the device was disposed");
  const auto found = programs_.find(get_int(id, "program", 1, next_id_));
  if (found == programs_.end()) throw Napi::Error::New(env_, "the program was disposed");
  return found->second;
}

Napi::Value DeviceObject::compile(const Napi::CallbackInfo& info) {
  if (executor_ == nullptr) throw Napi::Error::New(env_, "the device was disposed");
  if (!info[0].IsArray()) throw Napi::TypeError::New(env_, "commands must be an array");
  ReadCommands read = read_commands(info[0].As<Napi::Array>());
  Entry entry;
  try {
    entry.program = make_program(std::move(read.commands), read_limits(info[1]), executor_->num_threads());
  } catch (const CommandError& error) {
    throw error_with_code(env_, error.what(),
                          error.cause == CommandError::Cause::kKernel ? "MOE_DEVICE_KERNEL" : "MOE_INTERNAL");
  }
  entry.owners = std::move(read.owners);
  be_cleaned_up_first();
  const uint64_t bytes = entry.program.workspace_bytes;
  if (bytes > 0 && (workspace_ == nullptr || workspace_->bytes() < bytes)) {
    auto workspace = std::make_shared<DeviceMemory>(bytes);
    if (workspace->data() == nullptr) {
      throw error_with_code(env_, "There is no memory for " + std::to_string(bytes) + " bytes of workspace.",
                            "MOE_DEVICE_MEMORY");
    }
    workspace_ = std::move(workspace);
  }
  if (bytes > 0) entry.program.workspace = workspace_;
  Napi::Object result = Napi::Object::New(env_);
  result.Set("id", Napi::Number::New(env_, static_cast<double>(next_id_)));
  result.Set("numCommands", Napi::Number::New(env_, static_cast<double>(entry.program.commands.size())));
  result.Set("workspaceBytes", Napi::Number::New(env_, static_cast<double>(bytes)));
  programs_.emplace(next_id_++, std::move(entry));
  return result;
}

Napi::Value DeviceObject::submit(const Napi::CallbackInfo& info) {
  const Entry& submitted = entry(info[0]);
  if (running_.has_value()) throw Napi::Error::New(env_, "a step is running; one submit at a time");
  if (!info[1].IsArrayBuffer()) throw Napi::TypeError::New(env_, "the step inputs must be an ArrayBuffer");
  auto buffer = info[1].As<Napi::ArrayBuffer>();
  if (buffer.ByteLength() < submitted.program.layout.byte_length) {
    throw Napi::RangeError::New(env_, "the step inputs have " + std::to_string(buffer.ByteLength()) +
                                          " bytes, the program's layout has " +
                                          std::to_string(submitted.program.layout.byte_length));
  }
  if (buffer.Data() != step_data_) {
    step_buffer_ = {};
    step_buffer_.add_buffer(buffer);
    step_data_ = buffer.Data();
  }
  running_id_ = info[0].As<Napi::Number>().Int64Value();
  running_.emplace(Napi::Promise::Deferred::New(env_));
  napi_ref_threadsafe_function(env_, completed_);
  Ref(); /* until completion: collecting a device waits for its step */
  executor_->submit(&submitted.program, static_cast<const uint8_t*>(buffer.Data()));
  return running_->Promise();
}

void DeviceObject::complete(Napi::Env env) {
  const Napi::HandleScope scope(env);
  if (!running_.has_value() || completed_ == nullptr) return;
  const Napi::Promise::Deferred deferred = *std::exchange(running_, std::nullopt);
  const StepResult result = std::move(result_);
  napi_unref_threadsafe_function(env, completed_);
  Unref();
  experts_chosen_ += result.experts_chosen;
  last_times_ = times_;
  if (result.ok) {
    deferred.Resolve(env.Undefined());
    return;
  }
  Napi::Error error = Napi::Error::New(env, result.message);
  error.Set("command", Napi::String::New(env, result.command));
  deferred.Reject(error.Value());
}

Napi::Value DeviceObject::release(const Napi::CallbackInfo& info) {
  const int64_t id = get_int(info[0], "program", 1, next_id_);
  if (running_.has_value() && running_id_ == id) throw Napi::Error::New(env_, "the program is running");
  programs_.erase(id);
  return info.Env().Undefined();
}

Napi::Value DeviceObject::experts_chosen(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(experts_chosen_));
}

Napi::Value DeviceObject::last_step(const Napi::CallbackInfo& info) {
  constexpr double kNsPerMs = 1e6;
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("beganMs", Napi::Number::New(info.Env(), static_cast<double>(last_times_.began) / kNsPerMs));
  result.Set("endedMs", Napi::Number::New(info.Env(), static_cast<double>(last_times_.ended) / kNsPerMs));
  return result;
}

Napi::Value DeviceObject::dispose(const Napi::CallbackInfo& info) {
  shut_down();
  programs_.clear();
  workspace_.reset();
  step_buffer_ = {};
  step_data_ = nullptr;
  if (running_.has_value()) {
    Unref();
    std::exchange(running_, std::nullopt)
        ->Reject(Napi::Error::New(info.Env(), "the device was disposed while a step ran").Value());
  }
  return info.Env().Undefined();
}

}  // namespace moe
