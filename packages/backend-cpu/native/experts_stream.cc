#include "experts_stream.h"

#include <algorithm>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace moe {
namespace {

// Contributions of all choices: they are written once and read once.
constexpr int64_t kMaxPartials = (1 << 20) / static_cast<int64_t>(sizeof(float));

// Weights of a piece. Shorter ones lose time at their start, where nothing was fetched ahead; longer ones make threads
// wait for each other at the end. With few weights there are at least kPiecesPerThread pieces.
constexpr int64_t kPieceBytes = 192 << 10;
constexpr int64_t kPiecesPerThread = 4;

void wait_for(const std::atomic<int32_t>& flag) {
  for (uint32_t turn = 1; flag.load(std::memory_order_acquire) == 0; ++turn) {
    // The thread that is waited for may be waiting for this core.
    if (turn % 256 == 0) {
      std::this_thread::yield();
      continue;
    }
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
  }
}

// One projection of all segments, cut into pieces.
struct Pieces {
  Pieces(int64_t tiles_per_segment, int64_t tile_bytes, int64_t num_segments, int64_t num_threads)
      : tiles(tiles_per_segment) {
    const int64_t total = tiles * tile_bytes * num_segments;
    const int64_t bytes = std::min(kPieceBytes, total / (num_threads * kPiecesPerThread));
    per_segment = std::clamp<int64_t>(ceil_div(tiles * tile_bytes, std::max<int64_t>(bytes, 1)), 1, tiles);
  }
  int64_t first_tile(int64_t piece) const { return tiles * piece / per_segment; }

  int64_t tiles;
  int64_t per_segment;
};

}  // namespace

bool ExpertsStream::suits(const ExpertTiles& tiles, int64_t choices) {
  return choices * tiles.down_tiles() * kTileRows <= kMaxPartials;
}

int64_t ExpertsStream::num_partials(const ExpertTiles& tiles, int64_t choices) {
  return std::min(choices * tiles.down_tiles() * kTileRows, kMaxPartials);
}

ExpertsStream ExpertsStream::take(Carver& carver, const ExpertTiles& tiles) {
  ExpertsStream stream;
  stream.next_ = carver.take<std::atomic<int64_t>>(1);
  stream.pieces_done_ = carver.take<std::atomic<int32_t>>(tiles.num_experts());
  stream.ready_ = carver.take<std::atomic<int32_t>>(tiles.num_experts());
  stream.contributed_ = carver.take<std::atomic<int32_t>>(tiles.down_tiles());
  return stream;
}

void ExpertsStream::run(const ExpertTiles& tiles, const ExpertsRun& run, const moe_pool* pool,
                        float* partials) const {
  const ExpertsRouting& routing = run.routing;
  const int64_t num_segments = routing.num_segments;
  const int64_t num_threads = pool == nullptr ? 1 : pool->num_threads;
  // [choices, down_tiles, 16]
  const Partials kept = {partials, tiles.down_tiles() * kTileRows, kTileRows};
  if (num_segments == 0) {
    for (int64_t t = 0; t < tiles.down_tiles(); ++t) tiles.add_up(run, t, kept, t);
    return;
  }
  const Pieces up(tiles.up_tiles(), tiles.up_bytes(), num_segments, num_threads);
  const Pieces down(tiles.down_tiles(), tiles.down_bytes(), num_segments, num_threads);
  for (int64_t s = 0; s < num_segments; ++s) {
    pieces_done_[s].store(0, std::memory_order_relaxed);
    ready_[s].store(0, std::memory_order_relaxed);
  }
  for (int64_t c = 0; c < down.per_segment; ++c) contributed_[c].store(0, std::memory_order_relaxed);

  const auto gate_up = [&](int64_t s, int64_t piece) {
    const Segment& segment = routing.segments[s];
    tiles.gate_up(run, segment, up.first_tile(piece), up.first_tile(piece + 1));
    if (pieces_done_[s].fetch_add(1, std::memory_order_acq_rel) + 1 < up.per_segment) return;
    if (tiles.quantizes_whole_rows()) {
      for (int64_t pair = segment.begin; pair < segment.end; ++pair) tiles.quantize(run, pair);
    }
    ready_[s].store(1, std::memory_order_release);
  };
  const auto contribute = [&](int64_t s, int64_t piece) {
    wait_for(ready_[s]);
    const int64_t first = down.first_tile(piece);
    const int64_t last = down.first_tile(piece + 1);
    for (int64_t t = first; t < last; ++t) tiles.down(run, routing.segments[s], t, kept, t);
    if (contributed_[piece].fetch_add(1, std::memory_order_acq_rel) + 1 < num_segments) return;
    for (int64_t t = first; t < last; ++t) tiles.add_up(run, t, kept, t);
  };
  const int64_t num_up = num_segments * up.per_segment;
  auto body = [&](int64_t i) {
    if (i < num_up) {
      gate_up(i / up.per_segment, i % up.per_segment);
    } else {
      contribute((i - num_up) / down.per_segment, (i - num_up) % down.per_segment);
    }
  };
  parallel_for_each(pool, num_up + num_segments * down.per_segment, *next_, body);
}

}  // namespace moe
