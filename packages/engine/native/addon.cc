/* The exports of engine_cpu.node; their types are in src/device/cpu-addon.ts. */
#include <napi.h>

#include <moe/napi_convert.hpp>
#include <string>

#include "command_reader.h"
#include "cpu/bandwidth.h"
#include "cpu/cpu_features.h"
#include "device_object.h"
#include "exposed_memory.h"

namespace moe {
namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 52;

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

/* Seconds of reading must not hold up the event loop. */
class BandwidthWorker : public Napi::AsyncWorker {
 public:
  BandwidthWorker(Napi::Env env, uint32_t num_threads, uint64_t total_bytes, uint64_t piece_bytes)
      : Napi::AsyncWorker(env),
        deferred_(Napi::Promise::Deferred::New(env)),
        num_threads_(num_threads),
        total_bytes_(total_bytes),
        piece_bytes_(piece_bytes) {}

  Napi::Promise promise() const { return deferred_.Promise(); }

 protected:
  void Execute() override { bytes_per_second_ = measure_bandwidth(num_threads_, total_bytes_, piece_bytes_); }
  void OnOK() override { deferred_.Resolve(Napi::Number::New(Env(), bytes_per_second_)); }

 private:
  const Napi::Promise::Deferred deferred_;
  const uint32_t num_threads_;
  const uint64_t total_bytes_, piece_bytes_;
  double bytes_per_second_ = 0;
};

/* measureBandwidth(numThreads, totalBytes, pieceBytes): Promise of bytes per second, 0 when there is not that much
 * memory. */
Napi::Value bandwidth(const Napi::CallbackInfo& info) {
  auto* worker = new BandwidthWorker(info.Env(), static_cast<uint32_t>(get_int(info[0], "numThreads", 1, 1024)),
                                     static_cast<uint64_t>(get_int(info[1], "totalBytes", 1, kMaxBytes)),
                                     static_cast<uint64_t>(get_int(info[2], "pieceBytes", 1, kMaxBytes)));
  worker->Queue(); /* frees itself */
  return worker->promise();
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("cpuInfo", Napi::Function::New(env, cpu_info));
  exports.Set("allocate", Napi::Function::New(env, allocate));
  exports.Set("stepLayout", Napi::Function::New(env, step_layout));
  exports.Set("measureBandwidth", Napi::Function::New(env, bandwidth));
  exports.Set("CpuDevice", DeviceObject::define(env));
  return exports;
}

}  // namespace
}  // namespace moe

static Napi::Object init_module(Napi::Env env, Napi::Object exports) { return moe::init(env, exports); }

NODE_API_MODULE(engine_cpu, init_module)
