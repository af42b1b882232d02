/*
 * The native half of the backend contract, in C11.
 *
 * A backend's addon creates `moe_kernel` objects and hands them to JavaScript as type-tagged Node-API Externals
 * (napi_type_tag_object with MOE_KERNEL_TAG_LOWER/UPPER). The engine's executor unwraps them once, when a command buffer is
 * compiled, and calls `run` for every step, on a thread of its own.
 *
 * Every struct starts with its size in bytes as its creator knew it. A reader looks at a field only if it lies within
 * that size, so that fields can be added at the end without a new version. Changing the meaning of a field changes
 * MOE_ABI_VERSION, and the engine refuses kernels of another version by name.
 *
 * No exceptions, no Node-API and no allocation in `run`.
 */
#ifndef MOE_ABI_H_
#define MOE_ABI_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOE_ABI_VERSION 1

/* Type tag of an External that points to a moe_kernel. */
#define MOE_KERNEL_TAG_LOWER 0x6d6f652d6b65726eULL
#define MOE_KERNEL_TAG_UPPER 0x656c2d7631000001ULL

enum moe_dtype { MOE_F32 = 0, MOE_BF16 = 1 };

enum moe_status { MOE_OK = 0, MOE_INVALID_ARGUMENT = 1, MOE_DEVICE_FAULT = 2 };

/* Filled by a callee that returns anything but MOE_OK. */
typedef struct moe_error {
  uint32_t size;
  char message[252];
} moe_error;

/*
 * Work for one thread: the half-open interval [begin, end) of a parallel_for. `thread` is in [0, num_threads) and no two
 * calls that run at the same time share it.
 */
typedef void (*moe_task)(void* arg, int64_t begin, int64_t end, uint32_t thread);

/* The engine's thread pool, lent to every CPU plugin so that nobody oversubscribes the cores. */
typedef struct moe_pool {
  uint32_t size;
  uint32_t num_threads;
  void* context;
  /*
   * Calls `task` for intervals that cover [0, count) and returns when all are done. Intervals hold at least `grain`
   * items (the last may hold fewer). Which thread gets which interval is not determined: results must not depend on it.
   * The calling thread takes part. Not reentrant: a task must not call parallel_for.
   */
  void (*parallel_for)(void* context, int64_t count, int64_t grain, moe_task task, void* arg);
} moe_pool;

/* What one run may use besides its arguments. */
typedef struct moe_exec {
  uint32_t size;
  uint32_t reserved;
  const moe_pool* pool;
  /* Scratch memory, 64-byte aligned, at least what workspace_bytes answered. Contents are not kept between runs. */
  void* workspace;
  uint64_t workspace_bytes;
} moe_exec;

/* Arguments of an experts kernel. Row-major, strides in elements. */
typedef struct moe_experts_args {
  uint32_t size;
  uint32_t input_dtype; /* moe_dtype; F32 on the CPU */
  int64_t num_tokens;
  int32_t top_k;
  int32_t hidden_size;
  const void* hidden_states; /* [num_tokens, hidden_size] */
  int64_t hidden_stride;
  const int32_t* topk_slots;  /* [num_tokens, top_k]: slot in the group, -1 = not in this group */
  const float* topk_weights;  /* [num_tokens, top_k], as applied */
  float* output;              /* [num_tokens, hidden_size] */
  int64_t output_stride;
  int32_t accumulate; /* 0: output is overwritten, also where no expert of the group was chosen; 1: added to */
  int32_t reserved;
} moe_experts_args;

/* Arguments of a linear kernel: output[t, n] (+)= sum over k of input[t, k] * w[n, k] (+ bias[n]). */
typedef struct moe_linear_args {
  uint32_t size;
  uint32_t input_dtype;
  int64_t num_tokens;
  int32_t in_features;
  int32_t out_features;
  const void* input; /* [num_tokens, in_features] */
  int64_t input_stride;
  float* output; /* [num_tokens, out_features] */
  int64_t output_stride;
  int32_t accumulate;
  int32_t reserved;
} moe_linear_args;

enum moe_kernel_kind { MOE_KERNEL_EXPERTS = 1, MOE_KERNEL_LINEAR = 2 };

typedef struct moe_kernel {
  uint32_t size;
  uint32_t abi_version; /* MOE_ABI_VERSION of the header it was built with */
  uint32_t kind;        /* moe_kernel_kind: which struct `args` of run is */
  uint32_t reserved;
  void* self;
  /* For messages: "cpu/nvfp4-r16 avx512". Owned by the kernel. */
  const char* name;
  /* Called on the executor's thread; never twice at the same time for one kernel. Returns a moe_status. */
  int32_t (*run)(void* self, const void* args, const moe_exec* exec, moe_error* error);
  /* Bytes of scratch memory a run with this many tokens needs when the pool has num_threads threads. */
  uint64_t (*workspace_bytes)(void* self, int64_t num_tokens, uint32_t num_threads);
  /* Frees self. Called once, when the External is collected or disposed, never while run is active. */
  void (*destroy)(void* self);
} moe_kernel;

#ifdef __cplusplus
}
#endif

#endif /* MOE_ABI_H_ */
