/*
 * Reading arguments of an addon's functions: each accessor throws a TypeError that names the argument and says what was
 * expected, so that addon.cc stays a list of calls.
 */
#ifndef MOE_NAPI_CONVERT_HPP_
#define MOE_NAPI_CONVERT_HPP_

#include <napi.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

namespace moe {

/* A borrowed view of a typed array; valid while JavaScript keeps the array and does not detach its buffer. */
template <typename T>
struct ArrayView {
  T* data = nullptr;
  size_t length = 0;
};

namespace detail {

template <typename T>
constexpr napi_typedarray_type array_type() {
  if constexpr (sizeof(T) == 1) return napi_uint8_array;
  if constexpr (sizeof(T) == 2) return napi_uint16_array;
  if constexpr (std::is_same_v<T, float>) return napi_float32_array;
  return napi_int32_array;
}

template <typename T>
constexpr const char* array_name() {
  if constexpr (sizeof(T) == 1) return "Uint8Array";
  if constexpr (sizeof(T) == 2) return "Uint16Array";
  if constexpr (std::is_same_v<T, float>) return "Float32Array";
  return "Int32Array";
}

}  // namespace detail

inline Napi::Object get_object(Napi::Value value, const char* name) {
  if (!value.IsObject()) throw Napi::TypeError::New(value.Env(), std::string(name) + " must be an object");
  return value.As<Napi::Object>();
}

/* A whole number in [min, max]. */
inline int64_t get_int(Napi::Value value, const char* name, int64_t min = std::numeric_limits<int32_t>::min(),
                       int64_t max = std::numeric_limits<int32_t>::max()) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : std::nan("");
  if (!(number >= static_cast<double>(min) && number <= static_cast<double>(max)) || number != std::floor(number)) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a whole number from " + std::to_string(min) +
                                                " to " + std::to_string(max));
  }
  return static_cast<int64_t>(number);
}

inline double get_double(Napi::Value value, const char* name) {
  if (!value.IsNumber()) throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a number");
  return value.As<Napi::Number>().DoubleValue();
}

inline bool get_bool(Napi::Value value, const char* name) {
  if (!value.IsBoolean()) throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a boolean");
  return value.As<Napi::Boolean>().Value();
}

inline std::string get_string(Napi::Value value, const char* name) {
  if (!value.IsString()) throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a string");
  return value.As<Napi::String>().Utf8Value();
}

/* A typed array with at least `min_length` elements. T: uint8_t, uint16_t, int32_t or float. */
template <typename T>
ArrayView<T> get_array(Napi::Value value, const char* name, size_t min_length = 0) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != detail::array_type<T>()) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a " + detail::array_name<T>());
  }
  auto array = value.As<Napi::TypedArrayOf<T>>();
  if (array.ElementLength() < min_length) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + " must have at least " + std::to_string(min_length) +
                                                " elements, it has " + std::to_string(array.ElementLength()));
  }
  return {array.Data(), array.ElementLength()};
}

}  // namespace moe

#endif  // MOE_NAPI_CONVERT_HPP_
