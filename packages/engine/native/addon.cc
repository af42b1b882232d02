/* The exports of engine_cpu.node; their types are in src/device/cpu-addon.ts. */
#include <napi.h>

#include <functional>
#include <moe/napi_convert.hpp>
#include <string>
#include <utility>

#include "command_reader.h"
#include "cpu/bandwidth.h"
#include "cpu/cpu_features.h"
#include "cpu/dot_rates.h"
#include "device_object.h"
#include "exposed_memory.h"

namespace moe {
namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 52;
constexpr int64_t kMaxThreads = 1024;

Napi::Value cpu_info(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Napi::Array features = Napi::Array::New(env);
  for (const std::string& feature : cpu_features()) features.Set(features.Length(), feature);
  Napi::Object result = Napi::Object::New(env);
  result.Set("name", cpu_brand());
  result.Set("features", features);
  return result;
}

/* allocate(byteLength): an ArrayBuffer over zeroed memory of its own, or undefined when there is not that much. */
Napi::Value allocate(const Napi::CallbackInfo& info) {
  const auto bytes = static_cast<uint64_t>(get_int(info[0], "byteLength", 0, kMaxBytes));
  return expose_memory(info.Env(), bytes);
}

/* stepLayout(limits): { byteLength, offsets } as this side computes them. */
Napi::Value step_layout(const Napi::CallbackInfo& info) {
  const StepLayout layout = layout_step(read_limits(info[0]));
  Napi::Object offsets = Napi::Object::New(info.Env());
  for (uint32_t i = 0; i < kNumStepFields; i++) offsets.Set(kStepFieldNames[i], static_cast<double>(layout.offsets[i]));
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("byteLength", static_cast<double>(layout.byte_length));
  result.Set("offsets", offsets);
  return result;
}

/* Measuring takes up to seconds: the event loop must not wait. */
class MeasureWorker : public Napi::AsyncWorker {
 public:
  MeasureWorker(Napi::Env env, std::function<double()> measure)
      : Napi::AsyncWorker(env), deferred_(Napi::Promise::Deferred::New(env)), measure_(std::move(measure)) {}

  Napi::Promise promise() const { return deferred_.Promise(); }

 protected:
  void Execute() override { result_ = measure_(); }
  void OnOK() override { deferred_.Resolve(Napi::Number::New(Env(), result_)); }

 private:
  const Napi::Promise::Deferred deferred_;
  const std::function<double()> measure_;
  double result_ = 0;
};

Napi::Value start_measuring(Napi::Env env, std::function<double()> measure) {
  auto* worker = new MeasureWorker(env, std::move(measure));
  worker->Queue(); /* frees itself */
  return worker->promise();
}

/* measureBandwidth(numThreads, totalBytes, pieceBytes): Promise of bytes per second, 0 when there is not that much
 * memory. */
Napi::Value bandwidth(const Napi::CallbackInfo& info) {
  const auto num_threads = static_cast<uint32_t>(get_int(info[0], "numThreads", 1, kMaxThreads));
  const auto total_bytes = static_cast<uint64_t>(get_int(info[1], "totalBytes", 1, kMaxBytes));
  const auto piece_bytes = static_cast<uint64_t>(get_int(info[2], "pieceBytes", 1, kMaxBytes));
  return start_measuring(info.Env(), [=] { return measure_bandwidth(num_threads, total_bytes, piece_bytes); });
}

/* measureDotRate(numThreads, type): Promise of operations per second, 0 when the processor has no such instruction. */
Napi::Value dot_rate(const Napi::CallbackInfo& info) {
  const auto num_threads = static_cast<uint32_t>(get_int(info[0], "numThreads", 1, kMaxThreads));
  const std::string type = get_string(info[1], "type");
  const DotLoops loops = select_dot_loops(cpu_features());
  DotLoop loop;
  if (type == "int8") {
    loop = loops.int8;
  } else if (type == "bf16") {
    loop = loops.bf16;
  } else if (type == "f32") {
    loop = loops.f32;
  } else {
    throw Napi::TypeError::New(info.Env(), "type must be int8, bf16 or f32, got " + type);
  }
  return start_measuring(info.Env(), [=] { return loop == nullptr ? 0.0 : measure_dot_rate(num_threads, loop); });
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("cpuInfo", Napi::Function::New(env, cpu_info));
  exports.Set("allocate", Napi::Function::New(env, allocate));
  exports.Set("stepLayout", Napi::Function::New(env, step_layout));
  exports.Set("measureBandwidth", Napi::Function::New(env, bandwidth));
  exports.Set("measureDotRate", Napi::Function::New(env, dot_rate));
  exports.Set("CpuDevice", DeviceObject::define(env));
  return exports;
}

}  // namespace
}  // namespace moe

static Napi::Object init_module(Napi::Env env, Napi::Object exports) { return moe::init(env, exports); }

NODE_API_MODULE(engine_cpu, init_module)
