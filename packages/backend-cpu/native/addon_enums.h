// The names under which TypeScript knows the enums of the kernels.
#ifndef MOE_BACKEND_CPU_ADDON_ENUMS_H_
#define MOE_BACKEND_CPU_ADDON_ENUMS_H_

#include <napi.h>

#include <string>

#include "moe/napi_convert.hpp"

namespace moe {

// Numbers of the enums as TypeScript writes them; src/addon.ts has the same lists.
inline constexpr const char* kFormatNames[] = {"nvfp4", "mxfp4", "fp8", "fp8-block128", "bf16", "f16"};
inline constexpr const char* kInputNames[] = {"float", "nvfp4", "fp8-static", "fp8-token", "fp8-group128", "bf16"};
inline constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512", "neon"};

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

}  // namespace moe

#endif  // MOE_BACKEND_CPU_ADDON_ENUMS_H_
