#ifndef MOE_CPU_OPS_OP_CONTEXT_H_
#define MOE_CPU_OPS_OP_CONTEXT_H_

#include <algorithm>
#include <cstdint>

#include "../commands.h"
#include "../isa/kernels.h"
#include "../step_inputs.h"
#include "../thread_pool.h"

namespace moe {

/* What a step found out about itself. */
struct StepCounters {
  /* Different experts that were chosen, added up over the layers: the weights of so many had to be read. */
  int64_t experts_chosen = 0;
};

/* What an operator may use besides its command. */
struct OpContext {
  ThreadPool& pool;
  const Kernels& kernels;
  const StepInputs& step;
  /* Scratch memory, 64-byte aligned; contents are lost between operators. */
  uint8_t* workspace;
  uint64_t workspace_bytes;
  /* Written on the thread that runs the step. */
  StepCounters& counters;

  int64_t rows(RowCount count) const { return count == RowCount::kTokens ? step.num_tokens : step.num_logit_rows; }
};

/* A dispatch costs about as much as this many elements of a memory-bound operator. */
inline constexpr int64_t kInlineElements = 16384;

/* Calls body(begin, end, thread) for intervals of rows: at once where there is little to do, over the pool otherwise.
 */
template <class Body>
void for_rows(const OpContext& context, int64_t rows, int64_t elements_per_row, Body&& body) {
  if (rows <= 0) return;
  if (rows * elements_per_row <= kInlineElements) {
    body(int64_t{0}, rows, uint32_t{0});
  } else {
    context.pool.parallel_for(rows, std::max<int64_t>(1, kInlineElements / 4 / elements_per_row), body);
  }
}

/* Hands out pieces of scratch memory, each aligned to 64 bytes; with a null base it only counts. */
class Scratch {
 public:
  explicit Scratch(uint8_t* base) : base_(base) {}

  template <class T>
  T* take(int64_t count) {
    uint8_t* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (static_cast<uint64_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(piece);
  }
  uint64_t used() const { return used_; }

 private:
  uint8_t* base_;
  uint64_t used_ = 0;
};

}  // namespace moe

#endif  // MOE_CPU_OPS_OP_CONTEXT_H_
