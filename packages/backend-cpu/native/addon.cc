// Node-API in, plain C++ out. The TypeScript side of every function here is src/addon.ts.
#include <napi.h>

#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "cpu_features.h"
#include "experts_kernel.h"
#include "linear_kernel.h"
#include "moe/napi_convert.hpp"
#include "moe/napi_kernel.hpp"
#include "moe/status.hpp"
#include "packed_weights.h"
#include "thread_pool.h"

namespace moe {
namespace {

constexpr napi_type_tag kWeightsTag = {0x6d6f652d63707572ULL, 0x3136403177676874ULL};

using WeightsPointer = std::shared_ptr<PackedWeights>;

// Numbers of the enums as TypeScript writes them; src/addon.ts has the same lists.
constexpr const char* kFormatNames[] = {"nvfp4", "mxfp4", "fp8", "fp8-block128", "bf16", "f16"};
constexpr const char* kInputNames[] = {"float", "nvfp4", "fp8-static", "fp8-token", "fp8-group128", "bf16"};
constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512", "neon"};

template <typename Enum, size_t N>
Enum get_enum(Napi::Value value, const char* name, const char* const (&names)[N]) {
  const std::string text = get_string(value, name);
  std::string known;
  for (size_t i = 0; i < N; ++i) {
    if (text == names[i]) return static_cast<Enum>(i);
    known += std::string(i == 0 ? "" : ", ") + names[i];
  }
  throw Napi::TypeError::New(value.Env(), std::string(name) + " must be one of " + known + ", not \"" + text + "\"");
}

Napi::Value wrap_weights(Napi::Env env, WeightsPointer weights) {
  auto external = Napi::External<WeightsPointer>::New(env, new WeightsPointer(std::move(weights)),
                                                      [](Napi::Env, WeightsPointer* pointer) { delete pointer; });
  if (napi_type_tag_object(env, external, &kWeightsTag) != napi_ok)
    throw Napi::Error::New(env, "the weights could not be tagged");
  return external;
}

WeightsPointer& unwrap_pointer(Napi::Value value) {
  bool tagged = false;
  if (!value.IsExternal() || napi_check_object_type_tag(value.Env(), value, &kWeightsTag, &tagged) != napi_ok ||
      !tagged) {
    throw Napi::TypeError::New(value.Env(), "expected packed weights of this addon");
  }
  return *value.As<Napi::External<WeightsPointer>>().Data();
}

WeightsPointer unwrap_weights(Napi::Value value) {
  WeightsPointer weights = unwrap_pointer(value);
  if (weights == nullptr) throw Napi::TypeError::New(value.Env(), "the packed weights were disposed");
  return weights;
}

// Calls `make`, turning a lack of memory into an error with the code that TypeScript looks for.
template <typename Make>
auto allocating(Napi::Env env, Make make) {
  try {
    return make();
  } catch (const std::bad_alloc&) {
    Napi::Error error = Napi::Error::New(env, "not enough memory for the packed weights");
    error.Set("code", Napi::String::New(env, "OUT_OF_MEMORY"));
    throw error;
  }
}

Napi::Value instruction_sets(const Napi::CallbackInfo& info) {
  Napi::Array list = Napi::Array::New(info.Env());
  uint32_t count = 0;
  for (const Isa isa : kIsas) {
    if (find_kernels(isa) != nullptr) list.Set(count++, kIsaNames[static_cast<size_t>(isa)]);
  }
  return list;
}

Napi::Value create_expert_weights(const Napi::CallbackInfo& info) {
  const Napi::Object options = get_object(info[0], "options");
  const auto format = get_enum<WeightFormat>(options.Get("format"), "format", kFormatNames);
  const int64_t hidden = get_int(options.Get("hiddenSize"), "hiddenSize", 1);
  const int64_t intermediate = get_int(options.Get("moeIntermediateSize"), "moeIntermediateSize", 1);
  const int64_t experts = get_int(options.Get("numExperts"), "numExperts", 1, 1 << 20);
  const bool bias = get_bool(options.Get("hasBias"), "hasBias");
  return allocating(info.Env(), [&] {
    return wrap_weights(info.Env(), PackedWeights::for_experts({format, intermediate, hidden, bias},
                                                               {format, hidden, intermediate, bias}, experts));
  });
}

Napi::Value create_linear_weights(const Napi::CallbackInfo& info) {
  const Napi::Object options = get_object(info[0], "options");
  const auto format = get_enum<WeightFormat>(options.Get("format"), "format", kFormatNames);
  const int64_t columns = get_int(options.Get("inFeatures"), "inFeatures", 1);
  const auto rows = get_array<int32_t>(options.Get("outFeatures"), "outFeatures", 1);
  const bool bias = get_bool(options.Get("hasBias"), "hasBias");
  std::vector<MatrixShape> modules;
  for (size_t i = 0; i < rows.length; ++i) {
    if (rows.data[i] < 1) throw Napi::TypeError::New(info.Env(), "outFeatures must be positive");
    modules.push_back({format, rows.data[i], columns, bias});
  }
  return allocating(info.Env(), [&] { return wrap_weights(info.Env(), PackedWeights::for_modules(modules)); });
}

size_t matrix_index(const PackedWeights& weights, Napi::Value value) {
  return static_cast<size_t>(get_int(value, "matrix", 0, static_cast<int64_t>(weights.matrices().size()) - 1));
}

size_t code_bytes(const MatrixShape& shape) {
  const auto count = static_cast<size_t>(shape.rows * shape.columns);
  if (is_fp4(shape.format)) return count / 2;
  return shape.format == WeightFormat::kBf16 || shape.format == WeightFormat::kF16 ? count * 2 : count;
}

size_t scale_bytes(const MatrixShape& shape) {
  const auto count = static_cast<size_t>(shape.rows * shape.columns);
  if (shape.format == WeightFormat::kNvfp4) return count / 16;
  return shape.format == WeightFormat::kMxfp4 ? count / 32 : 0;
}

size_t block_scale_count(const MatrixShape& shape) {
  return static_cast<size_t>(ceil_div(shape.rows, 128) * ceil_div(shape.columns, 128));
}

MatrixSource get_source(const Napi::Object& object, const MatrixShape& shape) {
  MatrixSource source;
  source.codes = get_array<uint8_t>(object.Get("codes"), "codes", code_bytes(shape)).data;
  if (scale_bytes(shape) > 0)
    source.scale_codes = get_array<uint8_t>(object.Get("scaleCodes"), "scaleCodes", scale_bytes(shape)).data;
  if (shape.format == WeightFormat::kFp8Block128) {
    source.block_scales = get_array<float>(object.Get("blockScales"), "blockScales", block_scale_count(shape)).data;
  }
  const Napi::Value rows = object.Get("rowFactors");
  if (!rows.IsUndefined())
    source.row_factors = get_array<float>(rows, "rowFactors", static_cast<size_t>(shape.rows)).data;
  source.factor = static_cast<float>(get_double(object.Get("factor"), "factor"));
  if (shape.has_bias) source.bias = get_array<float>(object.Get("bias"), "bias", static_cast<size_t>(shape.rows)).data;
  return source;
}

// Packs one matrix on a thread of libuv's pool. The source object is referenced meanwhile, so that its arrays stay.
class PackWorker : public Napi::AsyncWorker {
 public:
  PackWorker(Napi::Env env, WeightsPointer weights, size_t index, const Napi::Object& object)
      : Napi::AsyncWorker(env, "moe-pack"),
        deferred_(Napi::Promise::Deferred::New(env)),
        keep_(Napi::Persistent(object)),
        weights_(std::move(weights)),
        index_(index),
        source_(get_source(object, weights_->matrices()[index].shape)) {}

  Napi::Promise promise() const { return deferred_.Promise(); }
  void Execute() override { result_ = weights_->pack(index_, source_); }
  void OnOK() override {
    if (result_ == PackResult::kOk) {
      deferred_.Resolve(Env().Undefined());
      return;
    }
    const bool nan = result_ == PackResult::kNanCode;
    Napi::Error error =
        Napi::Error::New(Env(), nan ? "a weight or block scale is NaN" : "a scale is not a finite number");
    error.Set("code", Napi::String::New(Env(), nan ? "NAN_CODE" : "BAD_SCALE"));
    deferred_.Reject(error.Value());
  }
  void OnError(const Napi::Error& error) override { deferred_.Reject(error.Value()); }

 private:
  Napi::Promise::Deferred deferred_;
  Napi::ObjectReference keep_;
  WeightsPointer weights_;
  size_t index_;
  MatrixSource source_;
  PackResult result_ = PackResult::kOk;
};

Napi::Value pack_matrix(const Napi::CallbackInfo& info) {
  WeightsPointer weights = unwrap_weights(info[0]);
  const size_t index = matrix_index(*weights, info[1]);
  auto worker = std::make_unique<PackWorker>(info.Env(), std::move(weights), index, get_object(info[2], "source"));
  const Napi::Promise promise = worker->promise();
  // AsyncWorker deletes itself once it is done.
  worker.release()->Queue();
  return promise;
}

Napi::Value unpack_matrix(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const WeightsPointer weights = unwrap_weights(info[0]);
  const size_t index = matrix_index(*weights, info[1]);
  const Matrix& matrix = weights->matrices()[index];
  const auto copy = [env](const float* values, size_t count) {
    Napi::Float32Array array = Napi::Float32Array::New(env, count);
    std::copy(values, values + count, array.Data());
    return array;
  };
  Napi::Uint8Array codes = Napi::Uint8Array::New(env, code_bytes(matrix.shape));
  Napi::Uint8Array scale_codes = Napi::Uint8Array::New(env, scale_bytes(matrix.shape));
  weights->unpack(index, codes.Data(), scale_bytes(matrix.shape) == 0 ? nullptr : scale_codes.Data());
  Napi::Object result = Napi::Object::New(env);
  const auto rows = static_cast<size_t>(matrix.shape.rows);
  result.Set("codes", codes);
  result.Set("scaleCodes", scale_codes);
  result.Set("factors", copy(matrix.factors, rows));
  result.Set("blockScales",
             copy(matrix.block_scales, matrix.block_scales == nullptr ? 0 : block_scale_count(matrix.shape)));
  result.Set("bias", copy(matrix.bias, matrix.bias == nullptr ? 0 : rows));
  return result;
}

Napi::Value weights_bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(unwrap_weights(info[0])->bytes()));
}

// The memory of the weights, for writing it to a file or reading it from one. The arrays keep it alive.
Napi::Value expose_weights(const Napi::CallbackInfo& info) {
  const WeightsPointer weights = unwrap_weights(info[0]);
  const auto expose = [&](const Buffer& buffer) -> Napi::Value {
    if (buffer.size() == 0) return Napi::Uint8Array::New(info.Env(), 0);
    auto* owner = new WeightsPointer(weights);
    const auto memory = Napi::ArrayBuffer::New(
        info.Env(), buffer.data(), buffer.size(), [](Napi::Env, void*, WeightsPointer* held) { delete held; }, owner);
    return Napi::Uint8Array::New(info.Env(), buffer.size(), memory, 0);
  };
  Napi::Array parts = Napi::Array::New(info.Env(), 2);
  parts.Set(0u, expose(weights->tiles()));
  parts.Set(1u, expose(weights->floats()));
  return parts;
}

// Takes the arrays of expose_weights away, so that memory is freed when it is disposed and not when they are collected.
void conceal_weights(const Napi::CallbackInfo& info) {
  const Napi::Array parts = info[0].As<Napi::Array>();
  for (uint32_t i = 0; i < parts.Length(); ++i) {
    Napi::ArrayBuffer memory = parts.Get(i).As<Napi::Uint8Array>().ArrayBuffer();
    if (memory.ByteLength() > 0 && !memory.IsDetached()) memory.Detach();
  }
}

// Kernels hold a reference of their own: the memory goes with the last of them.
void dispose_weights(const Napi::CallbackInfo& info) { unwrap_pointer(info[0]).reset(); }

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
  exports.Set("instructionSets", Napi::Function::New(env, instruction_sets, "instructionSets"));
  exports.Set("createExpertWeights", Napi::Function::New(env, create_expert_weights, "createExpertWeights"));
  exports.Set("createLinearWeights", Napi::Function::New(env, create_linear_weights, "createLinearWeights"));
  exports.Set("packMatrix", Napi::Function::New(env, pack_matrix, "packMatrix"));
  exports.Set("unpackMatrix", Napi::Function::New(env, unpack_matrix, "unpackMatrix"));
  exports.Set("exposeWeights", Napi::Function::New(env, expose_weights, "exposeWeights"));
  exports.Set("concealWeights", Napi::Function::New(env, conceal_weights, "concealWeights"));
  exports.Set("weightsBytes", Napi::Function::New(env, weights_bytes, "weightsBytes"));
  exports.Set("disposeWeights", Napi::Function::New(env, dispose_weights, "disposeWeights"));
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
