#include "experts_kernel.h"

#include <algorithm>
#include <utility>

#include "expert_tiles.h"
#include "experts_stream.h"
#include "moe/status.hpp"
#include "work_split.h"

namespace moe {
namespace {

// Output tiles of the down projection that a thread works on at a time, so that inputs are read once for all of them;
// fewer when the contributions of all tokens would not stay in the second-level cache.
constexpr int64_t kDownTiles = 4;
constexpr int64_t kPartialBytes = 1 << 20;

constexpr int64_t kTilePartialBytes = kTileRows * static_cast<int64_t>(sizeof(float));

int64_t down_tiles_at_once(int64_t choices) {
  return std::clamp<int64_t>(kPartialBytes / (choices * kTilePartialBytes), 1, kDownTiles);
}

// Partials of one thread. Never less for more choices, unlike down_tiles_at_once(choices) * choices: the memory is
// allocated for the largest step, and smaller ones must find room in it.
int64_t thread_partials(int64_t choices) {
  return std::max(choices, std::min(choices * kDownTiles, kPartialBytes / kTilePartialBytes)) * kTileRows;
}

/*
 * Few tokens run as a stream: every expert's weights are read once from end to end, whoever is free takes the next
 * piece (experts_stream.h). Many run in phases, gate and up of all experts and then down, each cut so that inputs and
 * weights meet in the cache.
 */
class ExpertsKernel {
 public:
  explicit ExpertsKernel(ExpertsConfig config) : config_(std::move(config)), tiles_(config_) {}

  const char* name() const { return config_.name.c_str(); }

  uint64_t workspace_bytes(int64_t num_tokens, uint32_t num_threads) const {
    const moe_experts_args none{};
    Workspace workspace{{none, {}}};
    return carve(nullptr, num_tokens, num_threads, workspace);
  }

  int32_t run(const moe_experts_args& args, const moe_exec& exec, moe_error* error) const {
    if (args.input_dtype != MOE_F32) return fail(error, MOE_INVALID_ARGUMENT, "%s: inputs must be float32", name());
    if (args.hidden_size != tiles_.hidden_size() || args.top_k < 1 || args.top_k > config_.top_k) {
      return fail(error, MOE_INVALID_ARGUMENT,
                  "%s: built for hidden size %lld and up to %d experts per token, called with %d and %d", name(),
                  static_cast<long long>(tiles_.hidden_size()), config_.top_k, args.hidden_size, args.top_k);
    }
    if (args.num_tokens <= 0) return MOE_OK;
    const uint32_t num_threads = exec.pool == nullptr ? 1 : exec.pool->num_threads;
    const uint64_t needed = workspace_bytes(args.num_tokens, num_threads);
    if (exec.workspace == nullptr || exec.workspace_bytes < needed) {
      return fail(error, MOE_INVALID_ARGUMENT, "%s: the workspace has %llu bytes, %lld tokens need %llu", name(),
                  static_cast<unsigned long long>(exec.workspace_bytes), static_cast<long long>(args.num_tokens),
                  static_cast<unsigned long long>(needed));
    }
    Workspace workspace{{args, {}}};
    carve(exec.workspace, args.num_tokens, num_threads, workspace);
    ExpertsRun& run = workspace.run;
    const int64_t bad = run.routing.sort(args, tiles_.num_experts());
    if (bad >= 0) {
      return fail(error, MOE_INVALID_ARGUMENT, "%s: token %lld chose slot %d, the group has %lld", name(),
                  static_cast<long long>(bad / args.top_k), args.topk_slots[bad],
                  static_cast<long long>(tiles_.num_experts()));
    }
    prepare_inputs(run, exec.pool);
    if (ExpertsStream::suits(tiles_, run.num_choices())) {
      workspace.stream.run(tiles_, run, exec.pool, workspace.partials);
    } else {
      run_gate_up(run, exec.pool);
      if (tiles_.quantizes_whole_rows()) quantize_intermediates(run, exec.pool);
      run_down(run, exec.pool, workspace.partials);
    }
    return MOE_OK;
  }

 private:
  struct Workspace {
    ExpertsRun run;
    ExpertsStream stream{};
    // For the stream, or for the phases [num_threads, thread_partials(choices)].
    float* partials = nullptr;
  };

  uint64_t carve(void* base, int64_t num_tokens, uint32_t num_threads, Workspace& workspace) const {
    Carver carver(base);
    const int64_t choices = num_tokens * config_.top_k;
    workspace.run.routing = ExpertsRouting::take(carver, choices, tiles_.num_experts());
    workspace.run.inputs =
        carver.take<uint8_t>(tiles_.num_input_records(num_tokens, choices) * tiles_.input_row().bytes);
    workspace.run.intermediates = carver.take<uint8_t>(choices * tiles_.intermediate_row().bytes);
    workspace.stream = ExpertsStream::take(carver, tiles_);
    workspace.partials = carver.take<float>(std::max(ExpertsStream::num_partials(tiles_, choices),
                                                     static_cast<int64_t>(num_threads) * thread_partials(choices)));
    return carver.used();
  }

  void prepare_inputs(const ExpertsRun& run, const moe_pool* pool) const {
    const double elements = static_cast<double>(tiles_.hidden_size());
    auto body = [&](int64_t begin, int64_t end, uint32_t) {
      for (int64_t record = begin; record < end; ++record) tiles_.prepare_input(run, record);
    };
    const int64_t records = tiles_.num_input_records(run.args.num_tokens, run.routing.num_pairs);
    parallel_for(pool, records, grain_for(elements * 8, elements * 8), body);
    for (int64_t pair = 0; pair < run.routing.num_pairs; ++pair) tiles_.clear_padding(run, pair);
  }

  void run_gate_up(const ExpertsRun& run, const moe_pool* pool) const {
    const int64_t up_tiles = tiles_.up_tiles();
    const ExpertsRouting& routing = run.routing;
    auto body = [&](int64_t begin, int64_t end, uint32_t) {
      while (begin < end) {
        const int64_t first = begin % up_tiles;
        const int64_t last = std::min(up_tiles, first + (end - begin));
        tiles_.gate_up(run, routing.segments[begin / up_tiles], first, last);
        begin += last - first;
      }
    };
    const double tokens =
        static_cast<double>(routing.num_pairs) / static_cast<double>(std::max<int64_t>(1, routing.num_segments));
    const double products = 2.0 * static_cast<double>(kTileRows * tiles_.hidden_size()) * tokens;
    parallel_for(pool, routing.num_segments * up_tiles, grain_for(static_cast<double>(tiles_.up_bytes()), products),
                 body);
  }

  void quantize_intermediates(const ExpertsRun& run, const moe_pool* pool) const {
    auto body = [&](int64_t begin, int64_t end, uint32_t) {
      for (int64_t pair = begin; pair < end; ++pair) tiles_.quantize(run, pair);
    };
    const double elements = static_cast<double>(tiles_.intermediate_row().padded);
    parallel_for(pool, run.routing.num_pairs, grain_for(elements * 8, elements * 8), body);
  }

  void run_down(const ExpertsRun& run, const moe_pool* pool, float* partials) const {
    const ExpertsRouting& routing = run.routing;
    const int64_t choices = run.num_choices();
    const int64_t at_once = down_tiles_at_once(choices);
    auto body = [&](int64_t begin, int64_t end, uint32_t thread) {
      const Partials kept = {partials + static_cast<int64_t>(thread) * thread_partials(choices), kTileRows,
                             choices * kTileRows};
      for (int64_t first = begin; first < end; first += at_once) {
        const int64_t last = std::min(end, first + at_once);
        for (int64_t s = 0; s < routing.num_segments; ++s) {
          for (int64_t t = first; t < last; ++t) tiles_.down(run, routing.segments[s], t, kept, t - first);
        }
        for (int64_t t = first; t < last; ++t) tiles_.add_up(run, t, kept, t - first);
      }
    };
    const double products =
        static_cast<double>(kTileRows * tiles_.intermediate_row().padded) * static_cast<double>(routing.num_pairs);
    const double bytes = static_cast<double>(tiles_.down_bytes() * routing.num_segments);
    parallel_for(pool, tiles_.down_tiles(), grain_for(bytes, products), body);
  }

  ExpertsConfig config_;
  ExpertTiles tiles_;
};

}  // namespace

moe_kernel make_experts_kernel(ExpertsConfig config) {
  auto* self = new ExpertsKernel(std::move(config));
  moe_kernel kernel{};
  kernel.size = sizeof(moe_kernel);
  kernel.abi_version = MOE_ABI_VERSION;
  kernel.kind = MOE_KERNEL_EXPERTS;
  kernel.self = self;
  kernel.name = self->name();
  kernel.run = [](void* object, const void* args, const moe_exec* exec, moe_error* error) -> int32_t {
    if (object == nullptr) return fail(error, MOE_INVALID_ARGUMENT, "the kernel was disposed");
    return static_cast<const ExpertsKernel*>(object)->run(*static_cast<const moe_experts_args*>(args), *exec, error);
  };
  kernel.workspace_bytes = [](void* object, int64_t num_tokens, uint32_t num_threads) {
    return static_cast<const ExpertsKernel*>(object)->workspace_bytes(num_tokens, num_threads);
  };
  kernel.destroy = [](void* object) { delete static_cast<ExpertsKernel*>(object); };
  return kernel;
}

}  // namespace moe
