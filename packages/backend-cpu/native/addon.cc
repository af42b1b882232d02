// Node-API in, plain C++ out: the kernels and the addon itself; weights are in addon_weights.cc. The TypeScript side of
// every function is src/addon.ts.
#include <napi.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "addon_enums.h"
#include "addon_weights.h"
#include "cpu_features.h"
#include "experts_kernel.h"
#include "linear_kernel.h"
#include "moe/napi_convert.hpp"
#include "moe/napi_kernel.hpp"
#include "moe/status.hpp"
#include "thread_pool.h"

namespace moe {
namespace {

Napi::Value instruction_sets(const Napi::CallbackInfo& info) {
  Napi::Array list = Napi::Array::New(info.Env());
  uint32_t count = 0;
  for (const Isa isa : kIsas) {
    if (find_kernels(isa) != nullptr) list.Set(count++, kIsaNames[static_cast<size_t>(isa)]);
  }
  return list;
}

const IsaKernels* get_isa(const Napi::Object& options) {
  const auto isa = get_enum<Isa>(options.Get("isa"), "isa", kIsaNames);
  const IsaKernels* kernels = find_kernels(isa);
  if (kernels == nullptr) {
    throw Napi::Error::New(options.Env(), std::string("this processor cannot run the ") +
                                              kIsaNames[static_cast<size_t>(isa)] + " kernels");
  }
  return kernels;
}

InputKind get_input(const Napi::Object& options, const PackedWeights& weights, const IsaKernels& isa) {
  const auto input = get_enum<InputKind>(options.Get("input"), "input", kInputNames);
  const WeightFormat format = weights.matrices().front().shape.format;
  if (isa.tile(format, input, 1) == nullptr) {
    throw Napi::TypeError::New(options.Env(), std::string("no kernel multiplies ") +
                                                  kInputNames[static_cast<size_t>(input)] + " inputs and " +
                                                  kFormatNames[static_cast<size_t>(format)] + " weights");
  }
  return input;
}

std::vector<float> get_input_scales(const Napi::Object& options, const PackedWeights& weights, InputKind input) {
  if (input != InputKind::kNvfp4 && input != InputKind::kFp8Static) return {};
  const auto scales = get_array<float>(options.Get("inputScales"), "inputScales", weights.matrices().size());
  return {scales.data, scales.data + weights.matrices().size()};
}

Napi::Value create_experts_kernel(const Napi::CallbackInfo& info) {
  const WeightsPointer weights = unwrap_weights(info[0]);
  const Napi::Object options = get_object(info[1], "options");
  ExpertsConfig config;
  config.isa = get_isa(options);
  config.input = get_input(options, *weights, *config.isa);
  config.input_scales = get_input_scales(options, *weights, config.input);
  config.weights = weights;
  config.top_k = static_cast<int32_t>(get_int(options.Get("topK"), "topK", 1));
  config.name = get_string(options.Get("name"), "name");
  const Napi::Object activation = get_object(options.Get("activation"), "activation");
  if (get_string(activation.Get("type"), "activation.type") == "swiglu") {
    config.activation = {ActivationKind::kSwiglu,
                         static_cast<float>(get_double(activation.Get("alpha"), "activation.alpha")),
                         static_cast<float>(get_double(activation.Get("limit"), "activation.limit"))};
  }
  return wrap_kernel(info.Env(), make_experts_kernel(std::move(config)));
}

Napi::Value create_linear_kernel(const Napi::CallbackInfo& info) {
  const WeightsPointer weights = unwrap_weights(info[0]);
  const Napi::Object options = get_object(info[1], "options");
  LinearConfig config;
  config.isa = get_isa(options);
  config.input = get_input(options, *weights, *config.isa);
  config.input_scales = get_input_scales(options, *weights, config.input);
  config.weights = weights;
  config.name = get_string(options.Get("name"), "name");
  return wrap_kernel(info.Env(), make_linear_kernel(std::move(config)));
}

void dispose(const Napi::CallbackInfo& info) { dispose_kernel(info.Env(), info[0]); }

Napi::Value workspace_bytes(const Napi::CallbackInfo& info) {
  const moe_kernel* kernel = unwrap_kernel(info.Env(), info[0]);
  const int64_t tokens = get_int(info[1], "numTokens", 0);
  const auto threads = static_cast<uint32_t>(get_int(info[2], "numThreads", 1, 4096));
  return Napi::Number::New(info.Env(), static_cast<double>(kernel->workspace_bytes(kernel->self, tokens, threads)));
}

// One pool per environment: worker threads load addons too.
ThreadPool& test_pool(Napi::Env env, uint32_t num_threads) {
  auto* pool = env.GetInstanceData<std::unique_ptr<ThreadPool>>();
  if (pool == nullptr) {
    pool = new std::unique_ptr<ThreadPool>();
    env.SetInstanceData(pool);
  }
  if (*pool == nullptr || (*pool)->abi()->num_threads != num_threads) *pool = std::make_unique<ThreadPool>(num_threads);
  return **pool;
}

void run_on_pool(const Napi::CallbackInfo& info, const moe_kernel& kernel, const void* args, int64_t num_tokens) {
  const auto threads = static_cast<uint32_t>(get_int(info[2], "numThreads", 1, 256));
  moe_error error = make_error();
  if (run_kernel(kernel, args, num_tokens, test_pool(info.Env(), threads).abi(), &error) != MOE_OK) {
    throw Napi::Error::New(info.Env(), error.message);
  }
}

// For tests, the conformance suite and the benchmark: blocks the JS thread, on a pool of this addon's own.
void run_experts(const Napi::CallbackInfo& info) {
  const moe_kernel* kernel = unwrap_kernel(info.Env(), info[0]);
  if (kernel->kind != MOE_KERNEL_EXPERTS) throw Napi::TypeError::New(info.Env(), "expected an experts kernel");
  const Napi::Object object = get_object(info[1], "args");
  moe_experts_args args{};
  args.size = sizeof(args);
  args.input_dtype = MOE_F32;
  args.num_tokens = get_int(object.Get("numTokens"), "numTokens", 0);
  args.top_k = static_cast<int32_t>(get_int(object.Get("topK"), "topK", 1, 1 << 16));
  args.hidden_size = static_cast<int32_t>(get_int(object.Get("hiddenSize"), "hiddenSize", 1));
  const auto values = static_cast<size_t>(args.num_tokens * args.hidden_size);
  const auto choices = static_cast<size_t>(args.num_tokens * args.top_k);
  args.hidden_states = get_array<float>(object.Get("hiddenStates"), "hiddenStates", values).data;
  args.hidden_stride = args.hidden_size;
  args.topk_slots = get_array<int32_t>(object.Get("topkSlots"), "topkSlots", choices).data;
  args.topk_weights = get_array<float>(object.Get("topkWeights"), "topkWeights", choices).data;
  args.output = get_array<float>(object.Get("output"), "output", values).data;
  args.output_stride = args.hidden_size;
  args.accumulate = get_bool(object.Get("accumulate"), "accumulate") ? 1 : 0;
  run_on_pool(info, *kernel, &args, args.num_tokens);
}

void run_linear(const Napi::CallbackInfo& info) {
  const moe_kernel* kernel = unwrap_kernel(info.Env(), info[0]);
  if (kernel->kind != MOE_KERNEL_LINEAR) throw Napi::TypeError::New(info.Env(), "expected a linear kernel");
  const Napi::Object object = get_object(info[1], "args");
  moe_linear_args args{};
  args.size = sizeof(args);
  args.input_dtype = MOE_F32;
  args.num_tokens = get_int(object.Get("numTokens"), "numTokens", 0);
  args.in_features = static_cast<int32_t>(get_int(object.Get("inFeatures"), "inFeatures", 1));
  args.out_features = static_cast<int32_t>(get_int(object.Get("outFeatures"), "outFeatures", 1));
  args.input =
      get_array<float>(object.Get("input"), "input", static_cast<size_t>(args.num_tokens * args.in_features)).data;
  args.input_stride = args.in_features;
  args.output =
      get_array<float>(object.Get("output"), "output", static_cast<size_t>(args.num_tokens * args.out_features)).data;
  args.output_stride = args.out_features;
  args.accumulate = get_bool(object.Get("accumulate"), "accumulate") ? 1 : 0;
  run_on_pool(info, *kernel, &args, args.num_tokens);
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  export_weights(env, exports);
  exports.Set("instructionSets", Napi::Function::New(env, instruction_sets, "instructionSets"));
  exports.Set("createExpertsKernel", Napi::Function::New(env, create_experts_kernel, "createExpertsKernel"));
  exports.Set("createLinearKernel", Napi::Function::New(env, create_linear_kernel, "createLinearKernel"));
  exports.Set("disposeKernel", Napi::Function::New(env, dispose, "disposeKernel"));
  exports.Set("workspaceBytes", Napi::Function::New(env, workspace_bytes, "workspaceBytes"));
  exports.Set("runExperts", Napi::Function::New(env, run_experts, "runExperts"));
  exports.Set("runLinear", Napi::Function::New(env, run_linear, "runLinear"));
  return exports;
}

}  // namespace
}  // namespace moe

static Napi::Object moe_init(Napi::Env env, Napi::Object exports) { return moe::init(env, exports); }

NODE_API_MODULE(backend_cpu, moe_init)
