/*
 * How a moe_kernel crosses JavaScript: as an External with the type tag of abi.h. A backend's addon wraps, the engine's
 * addon unwraps. Needs node-addon-api and NAPI_VERSION >= 8 (type tags on Externals: Node.js 18.16 and later).
 */
#ifndef MOE_NAPI_KERNEL_HPP_
#define MOE_NAPI_KERNEL_HPP_

#include <napi.h>

#include <string>

#include "moe/abi.h"

namespace moe {

inline constexpr napi_type_tag kKernelTag = {MOE_KERNEL_TAG_LOWER, MOE_KERNEL_TAG_UPPER};

namespace detail {

inline void throw_last_error(Napi::Env env, const char* operation) {
  const napi_extended_error_info* info = nullptr;
  napi_get_last_error_info(env, &info);
  std::string message = std::string(operation) + " failed";
  if (info != nullptr && info->error_message != nullptr) message += std::string(": ") + info->error_message;
  throw Napi::Error::New(env, message);
}

/* Frees what the kernel holds, once; the struct itself stays, so that a late call finds no dangling pointer. */
inline void release_kernel(moe_kernel* kernel) {
  if (kernel->self == nullptr) return;
  kernel->destroy(kernel->self);
  kernel->self = nullptr;
}

}  // namespace detail

/*
 * Takes ownership of `kernel.self`: `kernel.destroy` runs when the External is collected or when `dispose_kernel` is
 * called, whichever is first. `kernel.name` must live as long as `self` does.
 */
inline Napi::Value wrap_kernel(Napi::Env env, const moe_kernel& kernel) {
  auto* owned = new moe_kernel(kernel);
  napi_value result = nullptr;
  const napi_status status = napi_create_external(
      env, owned,
      [](napi_env, void* data, void*) {
        auto* collected = static_cast<moe_kernel*>(data);
        detail::release_kernel(collected);
        delete collected;
      },
      nullptr, &result);
  if (status != napi_ok) {
    detail::release_kernel(owned);
    delete owned;
    detail::throw_last_error(env, "napi_create_external");
  }
  if (napi_type_tag_object(env, result, &kKernelTag) != napi_ok) detail::throw_last_error(env, "napi_type_tag_object");
  return Napi::Value(env, result);
}

/*
 * The kernel inside `value`. The pointer is good for as long as JavaScript keeps the External.
 *
 * Throws a TypeError for anything but such an External, for a kernel of another ABI version (both versions are named),
 * and for one that was disposed.
 */
inline moe_kernel* unwrap_kernel(Napi::Env env, Napi::Value value) {
  bool tagged = false;
  if (value.IsExternal() && napi_check_object_type_tag(env, value, &kKernelTag, &tagged) != napi_ok) tagged = false;
  if (!tagged) throw Napi::TypeError::New(env, "expected a native kernel (an External tagged as moe_kernel)");
  void* data = nullptr;
  if (napi_get_value_external(env, value, &data) != napi_ok) detail::throw_last_error(env, "napi_get_value_external");
  auto* kernel = static_cast<moe_kernel*>(data);
  if (kernel->abi_version != MOE_ABI_VERSION) {
    throw Napi::TypeError::New(env, "the kernel was built for version " + std::to_string(kernel->abi_version) +
                                        " of moe/abi.h, this process has version " + std::to_string(MOE_ABI_VERSION) +
                                        "; build both packages from one release");
  }
  if (kernel->self == nullptr) throw Napi::TypeError::New(env, "the kernel was disposed");
  return kernel;
}

/* Frees the kernel now instead of at collection. Disposing twice does nothing. */
inline void dispose_kernel(Napi::Env env, Napi::Value value) {
  bool tagged = false;
  if (!value.IsExternal() || napi_check_object_type_tag(env, value, &kKernelTag, &tagged) != napi_ok || !tagged) {
    throw Napi::TypeError::New(env, "expected a native kernel (an External tagged as moe_kernel)");
  }
  void* data = nullptr;
  if (napi_get_value_external(env, value, &data) != napi_ok) detail::throw_last_error(env, "napi_get_value_external");
  detail::release_kernel(static_cast<moe_kernel*>(data));
}

}  // namespace moe

#endif  // MOE_NAPI_KERNEL_HPP_
