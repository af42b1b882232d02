/*
 * Error reporting for code on both sides of abi.h: filling a moe_error, without allocation and without exceptions.
 */
#ifndef MOE_STATUS_HPP_
#define MOE_STATUS_HPP_

#include <cstdarg>
#include <cstddef>
#include <cstdio>

#include "moe/abi.h"

namespace moe {

/* A zeroed error whose size field is set, ready to be passed to `run`. */
inline moe_error make_error() {
  moe_error error{};
  error.size = static_cast<uint32_t>(sizeof(moe_error));
  return error;
}

/*
 * Writes a printf-style message into `error` (may be null), cut to what fits in the caller's struct, and returns
 * `status`, so that a kernel can say `return fail(error, MOE_INVALID_ARGUMENT, ...)`.
 */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
inline int32_t fail(moe_error* error, moe_status status, const char* format, ...) {
  if (error != nullptr && error->size > offsetof(moe_error, message)) {
    size_t capacity = error->size - offsetof(moe_error, message);
    if (capacity > sizeof(error->message)) capacity = sizeof(error->message);
    va_list list;
    va_start(list, format);
    std::vsnprintf(error->message, capacity, format, list);
    va_end(list);
  }
  return status;
}

/* True when the struct's creator knew `member`: fields may have been added to it since. */
#define MOE_HAS_FIELD(pointer, member)                                                                                 \
  ((pointer)->size >=                                                                                                  \
   static_cast<uint32_t>(reinterpret_cast<const char*>(&(pointer)->member) - reinterpret_cast<const char*>(pointer)) + \
       sizeof((pointer)->member))

}  // namespace moe

#endif  // MOE_STATUS_HPP_
