// NVFP4 weights and inputs multiply in whole numbers, in as many ways as there are extensions for it. Which one a
// processor has must not be seen in a result: every way that this one can run gives the same bits, for every number of
// tokens, and they are the sums by definition.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu_features.h"
#include "packed_weights.h"
#include "reference.h"
#include "tile_codec.h"

namespace moe {

// tiles_avxvnni.cc, compiled for AVX-512; integer_tiles_evex.cc.
TileFn avxvnni_tile_by_avx512(int num_tokens);

namespace test {
namespace {

struct Way {
  std::string name;
  TileFn (*tile)(int num_tokens);
};

template <const IsaKernels& (*Kernels)()>
TileFn tile_of(int num_tokens) {
  return Kernels().tile(WeightFormat::kNvfp4, InputKind::kNvfp4, num_tokens);
}

#if defined(__x86_64__)
const IsaKernels& avx2() { return avx2_kernels(false); }
const IsaKernels& avx2_with_vnni() { return avx2_kernels(true); }

std::vector<Way> ways() {
  std::vector<Way> list;
  const IsaKernels* found = find_kernels(Isa::kAvx2);
  if (found == nullptr) return list;
  list.push_back({"avx2", tile_of<avx2>});
  if (found == &avx2_kernels(true)) list.push_back({"avx2 with vnni", tile_of<avx2_with_vnni>});
  if (find_kernels(Isa::kAvx512) == nullptr) return list;
  list.push_back({"avx2 with vnni, as avx512 encodes it", avxvnni_tile_by_avx512});
  list.push_back({"avx512", tile_of<avx512_kernels>});
  return list;
}
#elif defined(__aarch64__)
template <NeonDot D>
const IsaKernels& neon() {
  return neon_kernels(D);
}

std::vector<Way> ways() {
  const IsaKernels* found = find_kernels(Isa::kNeon);
  std::vector<Way> list = {{"neon", tile_of<neon<NeonDot::kWidening> >}};
  if (found == &neon_kernels(NeonDot::kWidening)) return list;
  list.push_back({"neon with dotprod", tile_of<neon<NeonDot::kDotprod> >});
  if (found == &neon_kernels(NeonDot::kI8mm)) list.push_back({"neon with i8mm", tile_of<neon<NeonDot::kI8mm> >});
  return list;
}
#else
std::vector<Way> ways() { return {}; }
#endif

// Rows of `columns` codes each, and a tile: all scales, subnormal ones included, and codes of all values.
struct Problem {
  explicit Problem(int64_t columns, const IsaKernels& isa, std::mt19937& random)
      : weights(random_matrix({WeightFormat::kNvfp4, kTileRows, columns, false}, random)),
        tile(static_cast<size_t>(tile_bytes(WeightFormat::kNvfp4, columns))),
        layout(make_row_layout(InputKind::kNvfp4, Element::kCode8, columns)),
        records(static_cast<size_t>(kMaxTileTokens * layout.bytes)) {
    pack_tile(WeightFormat::kNvfp4, columns, weights.codes.data(), weights.scale_codes.data(), 0, kTileRows,
              tile.data());
    std::normal_distribution<float> normal;
    for (int m = 0; m < kMaxTileTokens; ++m) {
      std::vector<float> x(static_cast<size_t>(columns));
      for (float& value : x) value = normal(random) * (m == 4 ? 0.0f : 1.0f);
      // The largest products, all of one sign.
      for (int k = 0; k < 16 && m == 2; ++k) x[static_cast<size_t>(k)] = 300;
      isa.prepare_row(x.data(), layout, kScale, records.data() + m * layout.bytes);
      const std::vector<double> quantized =
          quantized_input(x.data(), columns, InputKind::kNvfp4, Element::kCode8, kScale);
      for (int r = 0; r < kTileRows; ++r) {
        double sum = 0;
        for (int64_t k = 0; k < columns; ++k)
          sum += quantized[static_cast<size_t>(k)] * weights.value(r, k) / weights.row_factors[static_cast<size_t>(r)];
        sums.push_back(sum / kScale);
      }
    }
  }

  std::vector<float> run(TileFn function, int first, int num_tokens) const {
    const uint8_t* rows[kMaxTileTokens];
    for (int m = 0; m < num_tokens; ++m) rows[m] = records.data() + (first + m) * layout.bytes;
    alignas(64) float out[kMaxTileTokens * kTileRows];
    function({tile.data(), nullptr, &layout, padded_columns(WeightFormat::kNvfp4, layout.columns)}, rows, out);
    return {out, out + num_tokens * kTileRows};
  }

  static constexpr float kScale = 0.003f;
  RandomMatrix weights;
  Buffer tile;
  RowLayout layout;
  Buffer records;
  // [kMaxTileTokens, 16], without the factors of the rows and of the static scale.
  std::vector<double> sums;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

int test_columns(int64_t columns, const std::vector<Way>& list) {
  std::mt19937 random(static_cast<uint32_t>(columns));
  const Problem problem(columns, portable_kernels(), random);
  int failures = 0;
  const auto check = [&](bool ok, const Way& way, const char* what, int tokens) {
    if (ok) return;
    ++failures;
    std::printf("FAILED %s: %s, %d tokens of %d columns\n", way.name.c_str(), what, tokens, static_cast<int>(columns));
  };
  const std::vector<float> all = problem.run(list.front().tile(kMaxTileTokens), 0, kMaxTileTokens);
  // Products of doubled values, by scales times 2^-8.
  bool is_right = true;
  for (size_t i = 0; i < all.size(); ++i) {
    is_right = is_right && std::abs(all[i] * 64.0 - problem.sums[i]) < 1e-4 * (1 + std::abs(problem.sums[i]));
  }
  check(is_right, list.front(), "differs from the definition", kMaxTileTokens);
  for (const Way& way : list) {
    for (int tokens = 1; tokens <= kMaxTileTokens; ++tokens) {
      const int first = kMaxTileTokens - tokens;
      const std::vector<float> want(all.begin() + first * kTileRows, all.end());
      check(same_bits(problem.run(way.tile(tokens), first, tokens), want), way, "has other bits", tokens);
    }
  }
  return failures;
}

}  // namespace
}  // namespace test
}  // namespace moe

int main() {
  const std::vector<moe::test::Way> list = moe::test::ways();
  for (const moe::test::Way& way : list) std::printf("multiplied whole numbers: %s\n", way.name.c_str());
  if (list.empty()) return 0;
  int failures = 0;
  for (const int64_t columns : {64, 96, 448, 2048}) failures += moe::test::test_columns(columns, list);
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
