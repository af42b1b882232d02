#include "addon_weights.h"

#include <algorithm>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "addon_enums.h"

namespace moe {
namespace {

constexpr napi_type_tag kWeightsTag = {0x6d6f652d63707572ULL, 0x3136403177676874ULL};

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

}  // namespace

WeightsPointer unwrap_weights(Napi::Value value) {
  WeightsPointer weights = unwrap_pointer(value);
  if (weights == nullptr) throw Napi::TypeError::New(value.Env(), "the packed weights were disposed");
  return weights;
}

void export_weights(Napi::Env env, Napi::Object exports) {
  exports.Set("createExpertWeights", Napi::Function::New(env, create_expert_weights, "createExpertWeights"));
  exports.Set("createLinearWeights", Napi::Function::New(env, create_linear_weights, "createLinearWeights"));
  exports.Set("packMatrix", Napi::Function::New(env, pack_matrix, "packMatrix"));
  exports.Set("unpackMatrix", Napi::Function::New(env, unpack_matrix, "unpackMatrix"));
  exports.Set("exposeWeights", Napi::Function::New(env, expose_weights, "exposeWeights"));
  exports.Set("concealWeights", Napi::Function::New(env, conceal_weights, "concealWeights"));
  exports.Set("weightsBytes", Napi::Function::New(env, weights_bytes, "weightsBytes"));
  exports.Set("disposeWeights", Napi::Function::New(env, dispose_weights, "disposeWeights"));
}

}  // namespace moe
