/* Kernels for tests of the CPU device (test/device/): what a backend's addon would bring, in its simplest form. Not
 * shipped. */
#include <napi.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <moe/napi_convert.hpp>
#include <moe/napi_kernel.hpp>
#include <moe/status.hpp>
#include <vector>

namespace moe {
namespace {

struct Matrix {
  int64_t in_features, out_features;
  std::vector<float> weights;
};

/* Copies its input to the workspace and sums over in_features in order, outputs spread over the pool. */
int32_t run_linear(void* self, const void* arguments, const moe_exec* exec, moe_error* error) {
  const auto& matrix = *static_cast<const Matrix*>(self);
  const auto& args = *static_cast<const moe_linear_args*>(arguments);
  if (args.in_features != matrix.in_features || args.out_features != matrix.out_features) {
    return fail(error, MOE_INVALID_ARGUMENT, "made for [%lld, %lld]", static_cast<long long>(matrix.in_features),
                static_cast<long long>(matrix.out_features));
  }
  auto* copy = static_cast<float*>(exec->workspace);
  for (int64_t t = 0; t < args.num_tokens; t++) {
    std::memcpy(copy + t * args.in_features, static_cast<const float*>(args.input) + t * args.input_stride,
                static_cast<size_t>(args.in_features) * sizeof(float));
  }
  struct Task {
    const Matrix& matrix;
    const moe_linear_args& args;
    const float* input;
  } task{matrix, args, copy};
  exec->pool->parallel_for(
      exec->pool->context, args.out_features, 3,
      [](void* arg, int64_t begin, int64_t end, uint32_t) {
        const auto& [matrix, args, input] = *static_cast<const Task*>(arg);
        for (int64_t t = 0; t < args.num_tokens; t++) {
          for (int64_t n = begin; n < end; n++) {
            float sum = 0;
            for (int64_t k = 0; k < args.in_features; k++)
              sum += input[t * args.in_features + k] * matrix.weights[static_cast<size_t>(n * args.in_features + k)];
            float& output = args.output[t * args.output_stride + n];
            output = args.accumulate != 0 ? output + sum : sum;
          }
        }
      },
      &task);
  return MOE_OK;
}

/* Expert s multiplies its input by s + 1. */
int32_t run_experts(void*, const void* arguments, const moe_exec*, moe_error*) {
  const auto& args = *static_cast<const moe_experts_args*>(arguments);
  for (int64_t t = 0; t < args.num_tokens; t++) {
    float factor = 0;
    for (int32_t j = 0; j < args.top_k; j++) {
      const int32_t slot = args.topk_slots[t * args.top_k + j];
      if (slot >= 0) factor += static_cast<float>(slot + 1) * args.topk_weights[t * args.top_k + j];
    }
    for (int32_t i = 0; i < args.hidden_size; i++) {
      float& output = args.output[t * args.output_stride + i];
      const float value = factor * static_cast<const float*>(args.hidden_states)[t * args.hidden_stride + i];
      output = args.accumulate != 0 ? output + value : value;
    }
  }
  return MOE_OK;
}

int32_t run_failing(void*, const void*, const moe_exec*, moe_error* error) {
  return fail(error, MOE_DEVICE_FAULT, "the weights are on fire");
}

/* Dispatches many sizes and checks that every item comes once and that no two calls share a thread number at the same
 * time. */
int32_t run_pool_probe(void*, const void*, const moe_exec* exec, moe_error* error) {
  constexpr int64_t kMost = 2000;
  struct Task {
    std::unique_ptr<std::atomic<int>[]> visits = std::make_unique<std::atomic<int>[]>(kMost);
    std::unique_ptr<std::atomic<int>[]> inside;
    std::atomic<int> collisions{0};
  } task;
  task.inside = std::make_unique<std::atomic<int>[]>(exec->pool->num_threads);
  for (int64_t count = 0; count < kMost; count += 1 + count / 7) {
    for (int64_t i = 0; i < kMost; i++) task.visits[static_cast<size_t>(i)] = 0;
    exec->pool->parallel_for(
        exec->pool->context, count, 1 + count % 5,
        [](void* arg, int64_t begin, int64_t end, uint32_t thread) {
          auto& t = *static_cast<Task*>(arg);
          if (t.inside[thread].fetch_add(1) != 0) t.collisions++;
          for (int64_t i = begin; i < end; i++) t.visits[static_cast<size_t>(i)]++;
          t.inside[thread]--;
        },
        &task);
    for (int64_t i = 0; i < kMost; i++) {
      const int expected = i < count ? 1 : 0, actual = task.visits[static_cast<size_t>(i)];
      if (actual != expected) {
        return fail(error, MOE_DEVICE_FAULT, "item %d of %d came %d times", static_cast<int>(i),
                    static_cast<int>(count), actual);
      }
    }
  }
  return task.collisions == 0
             ? static_cast<int32_t>(MOE_OK)
             : fail(error, MOE_DEVICE_FAULT, "%d calls shared a thread number", task.collisions.load());
}

uint64_t no_workspace(void*, int64_t, uint32_t) { return 0; }

moe_kernel kernel_of(moe_kernel_kind kind, const char* name, decltype(moe_kernel::run) run) {
  moe_kernel kernel{};
  kernel.size = sizeof kernel;
  kernel.abi_version = MOE_ABI_VERSION;
  kernel.kind = kind;
  kernel.name = name;
  kernel.self = new char;
  kernel.run = run;
  kernel.workspace_bytes = no_workspace;
  kernel.destroy = [](void* self) { delete static_cast<char*>(self); };
  return kernel;
}

/* linear(inFeatures, outFeatures, weights: Float32Array) */
Napi::Value linear(const Napi::CallbackInfo& info) {
  const int64_t in_features = get_int(info[0], "inFeatures", 1), out_features = get_int(info[1], "outFeatures", 1);
  const auto weights = get_array<float>(info[2], "weights", static_cast<size_t>(in_features * out_features));
  moe_kernel kernel{};
  kernel.size = sizeof kernel;
  kernel.abi_version = MOE_ABI_VERSION;
  kernel.kind = MOE_KERNEL_LINEAR;
  kernel.name = "test/linear";
  kernel.self = new Matrix{in_features, out_features, {weights.data, weights.data + weights.length}};
  kernel.run = run_linear;
  kernel.workspace_bytes = [](void* self, int64_t num_tokens, uint32_t) {
    return static_cast<uint64_t>(num_tokens * static_cast<const Matrix*>(self)->in_features) * sizeof(float);
  };
  kernel.destroy = [](void* self) { delete static_cast<Matrix*>(self); };
  return wrap_kernel(info.Env(), kernel);
}

Napi::Value experts(const Napi::CallbackInfo& info) {
  return wrap_kernel(info.Env(), kernel_of(MOE_KERNEL_EXPERTS, "test/experts", run_experts));
}

Napi::Value failing(const Napi::CallbackInfo& info) {
  return wrap_kernel(info.Env(), kernel_of(MOE_KERNEL_LINEAR, "test/failing", run_failing));
}

Napi::Value pool_probe(const Napi::CallbackInfo& info) {
  return wrap_kernel(info.Env(), kernel_of(MOE_KERNEL_LINEAR, "test/pool-probe", run_pool_probe));
}

Napi::Value other_version(const Napi::CallbackInfo& info) {
  moe_kernel kernel = kernel_of(MOE_KERNEL_LINEAR, "test/other-version", run_failing);
  kernel.abi_version = MOE_ABI_VERSION + 1;
  return wrap_kernel(info.Env(), kernel);
}

Napi::Value dispose(const Napi::CallbackInfo& info) {
  dispose_kernel(info.Env(), info[0]);
  return info.Env().Undefined();
}

}  // namespace

Napi::Object init_kernels(Napi::Env env, Napi::Object exports) {
  exports.Set("linear", Napi::Function::New(env, linear));
  exports.Set("experts", Napi::Function::New(env, experts));
  exports.Set("failing", Napi::Function::New(env, failing));
  exports.Set("poolProbe", Napi::Function::New(env, pool_probe));
  exports.Set("otherVersion", Napi::Function::New(env, other_version));
  exports.Set("dispose", Napi::Function::New(env, dispose));
  return exports;
}

}  // namespace moe

static Napi::Object init_module(Napi::Env env, Napi::Object exports) { return moe::init_kernels(env, exports); }

NODE_API_MODULE(engine_test_kernels, init_module)
