#include "command_reader.h"

#include <moe/napi_convert.hpp>
#include <moe/napi_kernel.hpp>
#include <utility>

#include "exposed_memory.h"

namespace moe {
namespace {

constexpr int64_t kMaxInt = int64_t{1} << 53;

/* One command's fields, with the command's name for messages. */
class Fields {
 public:
  Fields(Napi::Object object, std::string name, Owners& owners)
      : object_(object), name_(std::move(name)), owners_(owners) {}

  Napi::Env env() const { return object_.Env(); }
  Napi::Value get(const char* field) const { return object_.Get(field); }
  int64_t integer(const char* field) const { return get_int(get(field), label(field).c_str(), -kMaxInt, kMaxInt); }
  float number(const char* field) const { return static_cast<float>(get_double(get(field), label(field).c_str())); }
  bool boolean(const char* field) const { return get_bool(get(field), label(field).c_str()); }
  std::string string(const char* field) const { return get_string(get(field), label(field).c_str()); }
  Fields object(const char* field) const {
    return {get_object(get(field), label(field).c_str()), label(field), owners_};
  }

  RowCount rows() const {
    const std::string rows = string("rows");
    if (rows == "tokens") return RowCount::kTokens;
    if (rows == "logitRows") return RowCount::kLogitRows;
    throw unexpected("rows", rows);
  }

  /* A BufferRef. */
  template <class T>
  Span<T> span(const char* field) const {
    const Fields ref = object(field);
    const Napi::Value value = ref.get("buffer");
    if (!value.IsArrayBuffer()) throw Napi::TypeError::New(env(), label(field) + ".buffer must be an ArrayBuffer");
    auto buffer = value.As<Napi::ArrayBuffer>();
    const int64_t offset = ref.integer("byteOffset"), length = ref.integer("byteLength");
    if (offset < 0 || length < 0 || static_cast<uint64_t>(offset + length) > buffer.ByteLength()) {
      throw Napi::RangeError::New(env(), label(field) + " lies outside its buffer: " + std::to_string(length) +
                                             " bytes from " + std::to_string(offset) + " of " +
                                             std::to_string(buffer.ByteLength()));
    }
    if (offset % 64 != 0)
      throw Napi::RangeError::New(env(),
                                  label(field) + ".byteOffset must be a multiple of 64, got " + std::to_string(offset));
    owners_.add_buffer(buffer);
    return {reinterpret_cast<T*>(static_cast<uint8_t*>(buffer.Data()) + offset), static_cast<uint64_t>(length)};
  }
  template <class T>
  Span<T> optional_span(const char* field) const {
    return get(field).IsUndefined() ? Span<T>{} : span<T>(field);
  }

  moe_kernel* kernel() const {
    const Napi::Value external = object("kernel").object("entry").get("external");
    try {
      moe_kernel* kernel = unwrap_kernel(env(), external);
      owners_.add(external);
      return kernel;
    } catch (const Napi::Error& error) {
      Napi::Error named = Napi::TypeError::New(env(), name_ + ": " + error.Message());
      named.Set("code", Napi::String::New(env(), "MOE_DEVICE_KERNEL"));
      throw named;
    }
  }

  Napi::Error unexpected(const char* field, const std::string& value) const {
    return Napi::TypeError::New(env(), label(field) + " is " + value + ", which the CPU device does not know");
  }

 private:
  std::string label(const char* field) const { return name_ + ": " + field; }

  Napi::Object object_;
  std::string name_;
  Owners& owners_;
};

GatedActivation read_activation(const Fields& f) {
  const std::string type = f.string("type");
  if (type == "silu") return {};
  if (type == "swiglu") return {GatedActivation::Type::kSwiglu, f.number("alpha"), f.number("limit")};
  throw f.unexpected("type", type);
}

RoutingMethod read_method(const Fields& f) {
  const std::string score = f.string("score"), order = f.string("order");
  if (score != "softmax" && score != "sigmoid") throw f.unexpected("score", score);
  if (order != "score-first" && order != "topk-first") throw f.unexpected("order", order);
  return {
      .sigmoid = score == "sigmoid",
      .topk_first = order == "topk-first",
      .renormalize = f.boolean("renormalize"),
      .num_groups = f.integer("numGroups"),
      .topk_groups = f.integer("topkGroups"),
      .scaling_factor = f.number("scalingFactor"),
  };
}

KvCache read_cache(const Fields& f) {
  const std::string dtype = f.string("dtype");
  if (dtype != "bf16" && dtype != "f8e4m3") throw f.unexpected("dtype", dtype);
  return {
      .dtype = dtype == "bf16" ? KvDType::kBf16 : KvDType::kF8E4M3,
      .keys = f.span<uint8_t>("keys"),
      .values = f.span<uint8_t>("values"),
      .num_blocks = f.integer("numBlocks"),
      .block_size = f.integer("blockSize"),
      .num_kv_heads = f.integer("numKvHeads"),
      .head_dim = f.integer("headDim"),
      .key_scale = f.number("keyScale"),
      .value_scale = f.number("valueScale"),
  };
}

Operation read_operation(const std::string& op, const Fields& f) {
  if (op == "embed") {
    return Embed{f.span<const uint16_t>("table"), f.integer("vocabSize"), f.integer("width"), f.span<float>("output")};
  }
  if (op == "rmsNorm") {
    return RmsNorm{f.rows(),
                   f.integer("width"),
                   f.number("eps"),
                   f.span<const float>("input"),
                   f.span<const float>("weight"),
                   f.span<float>("output")};
  }
  if (op == "linear") {
    return Linear{f.rows(),
                  f.kernel(),
                  f.integer("inFeatures"),
                  f.integer("outFeatures"),
                  f.span<const float>("input"),
                  f.span<float>("output"),
                  f.boolean("accumulate")};
  }
  if (op == "headRmsNorm") {
    return HeadRmsNorm{f.span<float>("tensor"),      f.integer("rowWidth"), f.integer("columnOffset"),
                       f.integer("numHeads"),        f.integer("headDim"),  f.number("eps"),
                       f.span<const float>("weight")};
  }
  if (op == "rope") {
    return Rope{f.span<float>("tensor"),  f.integer("rowWidth"),        f.integer("columnOffset"),
                f.integer("numHeads"),    f.integer("headDim"),         f.integer("rotaryDim"),
                f.boolean("interleaved"), f.span<const float>("table"), f.integer("maxPositions")};
  }
  if (op == "kvStore") {
    return KvStore{f.span<const float>("tensor"), f.integer("rowWidth"), f.integer("keyOffset"),
                   f.integer("valueOffset"), read_cache(f.object("cache"))};
  }
  if (op == "attention") {
    return Attention{f.span<const float>("queries"),
                     f.integer("rowWidth"),
                     f.integer("queryOffset"),
                     f.integer("numHeads"),
                     f.number("scale"),
                     read_cache(f.object("cache")),
                     f.integer("slidingWindow"),
                     f.optional_span<const float>("sinks"),
                     f.span<float>("output")};
  }
  if (op == "route") {
    return Route{f.integer("hiddenSize"),
                 f.integer("numExperts"),
                 f.integer("topK"),
                 read_method(f.object("method")),
                 f.span<const float>("input"),
                 f.span<const float>("weight"),
                 f.optional_span<const float>("bias"),
                 f.optional_span<const float>("correctionBias"),
                 f.span<int32_t>("topkIds"),
                 f.span<float>("topkWeights")};
  }
  if (op == "mapSlots") {
    return MapSlots{f.integer("topK"), f.integer("numExperts"), f.span<const int32_t>("topkIds"),
                    f.span<const int32_t>("slots"), f.span<int32_t>("topkSlots")};
  }
  if (op == "experts") {
    return Experts{f.kernel(),
                   f.integer("hiddenSize"),
                   f.integer("topK"),
                   f.span<const float>("input"),
                   f.span<const int32_t>("topkSlots"),
                   f.span<const float>("topkWeights"),
                   f.span<float>("output"),
                   f.boolean("accumulate")};
  }
  if (op == "gatedActivation") {
    return GatedActivationCommand{f.rows(), read_activation(f.object("activation")), f.integer("width"),
                                  f.span<const float>("input"), f.span<float>("output")};
  }
  if (op == "gatherRows") {
    return GatherRows{f.integer("width"), f.span<const float>("input"), f.span<float>("output")};
  }
  if (op == "sample") {
    return Sample{f.span<float>("logits"),   f.integer("vocabSize"),      f.span<int32_t>("tokenIds"),
                  f.span<float>("logprobs"), f.span<int32_t>("ranks"),    f.integer("maxTopLogprobs"),
                  f.span<int32_t>("topIds"), f.span<float>("topLogprobs")};
  }
  throw f.unexpected("op", op);
}

}  // namespace

void Owners::add(Napi::Value object) { objects.push_back(Napi::Reference<Napi::Value>::New(object, 1)); }

void Owners::add_buffer(Napi::ArrayBuffer buffer) {
  add(buffer);
  if (auto shared = exposed_memory(buffer.Data())) memory.push_back(std::move(shared));
}

ReadCommands read_commands(Napi::Array commands) {
  ReadCommands result;
  result.commands.reserve(commands.Length());
  for (uint32_t i = 0; i < commands.Length(); i++) {
    const Napi::HandleScope scope(commands.Env());
    std::string place("command ");
    place += std::to_string(i);
    const Napi::Object object = get_object(commands.Get(i), place.c_str());
    const std::string op = get_string(object.Get("op"), (place + ": op").c_str());
    std::string name = place + " (" + op;
    const Napi::Value given_name = object.Get("name");
    if (given_name.IsString()) name += " " + given_name.As<Napi::String>().Utf8Value();
    name += ")";
    Operation operation = read_operation(op, Fields(object, name, result.owners));
    result.commands.push_back({std::move(name), std::move(operation)});
  }
  return result;
}

StepLimits read_limits(Napi::Value value) {
  const Napi::Object limits = get_object(value, "limits");
  const auto limit = [&](const char* name) { return get_int(limits.Get(name), name, 0, 1 << 30); };
  return {
      .max_num_tokens = limit("maxNumTokens"),
      .max_num_seqs = limit("maxNumSeqs"),
      .max_logit_rows = limit("maxLogitRows"),
      .max_blocks_per_seq = limit("maxBlocksPerSeq"),
      .max_adjustments = limit("maxAdjustments"),
  };
}

}  // namespace moe
