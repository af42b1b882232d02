/* Tests of the operators' arithmetic that need no Node: every instruction set of this machine against the portable
 * one, whose text is their meaning. What rounds to a type, moves bits or compares is held to equal bits; sums and exp
 * to 1e-5, because the others fuse products into sums; attention to its result in float64. */
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cpu/cpu_features.h"
#include "cpu/isa/kernels.h"

namespace moe::test {
namespace {

int failures = 0;
std::mt19937 random_bits(7);

using Floats = std::vector<float>;

void check(bool ok, const Kernels& isa, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("FAILED %s: %s\n", isa.name, what.c_str());
}

Floats normal(size_t count, float deviation = 1) {
  std::normal_distribution<float> distribution(0, deviation);
  Floats values(count);
  for (float& value : values) value = distribution(random_bits);
  return values;
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool close(const Floats& got, const Floats& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); i++) {
    difference += (got[i] - want[i]) * static_cast<double>(got[i] - want[i]);
    norm += static_cast<double>(want[i]) * want[i];
  }
  return std::sqrt(difference) <= 1e-5 * std::sqrt(norm);
}

constexpr int64_t kLengths[] = {1, 15, 16, 37, 64, 200};

/* Runs body(kernels) for both tables and answers both results. */
template <class Body>
std::pair<Floats, Floats> both(const Kernels& isa, const Body& body) {
  return {body(isa), body(portable_kernels())};
}

void test_rows(const Kernels& isa) {
  for (const int64_t n : kLengths) {
    const auto count = static_cast<size_t>(n);
    const std::string length = " of " + std::to_string(n);
    const Floats x = normal(count, 4), y = normal(count);
    /* Calls f(kernels, output) and compares; the output has room for a chunk's results too. */
    const auto compare = [&](const char* what, bool exact, const auto& f) {
      const auto [got, want] = both(isa, [&](const Kernels& k) {
        Floats output = x;
        f(k, output.data());
        return output;
      });
      check(exact ? same_bits(got, want) : close(got, want), isa, what + length);
    };
    compare("rms_norm", false, [&](const Kernels& k, float* o) { k.rms_norm(x.data(), y.data(), o, n, 1e-6f); });
    compare("scale", true, [&](const Kernels& k, float* o) { k.scale(x.data(), 0.37f, o, n); });
    compare("sigmoid", false, [&](const Kernels& k, float* o) { k.sigmoid(o, n); });
    compare("softmax_terms", false, [&](const Kernels& k, float* o) {
      const float sum = k.softmax_terms(o, n);
      for (int64_t i = 0; i < n; i++) o[i] /= sum;
    });
    compare("exp_terms", false, [&](const Kernels& k, float* o) { k.exp_terms(x.data(), o, n, 9, 0.7f); });
    compare("chunk_max", true, [&](const Kernels& k, float* o) {
      Floats with_nan = x;
      if (n > 20) with_nan[17] = std::numeric_limits<float>::quiet_NaN();
      const float largest = k.chunk_max(with_nan.data(), n, o);
      o[n - 1] = n > 64 ? largest : o[n - 1];
    });
    compare("chunk_exp_sums", false, [&](const Kernels& k, float* o) { k.chunk_exp_sums(x.data(), n, 8, 1, o); });
    compare("count_greater", true,
            [&](const Kernels& k, float* o) { o[0] = static_cast<float>(k.count_greater(x.data(), n, x[0] - 1)); });
    for (const auto type : {GatedActivation::Type::kSilu, GatedActivation::Type::kSwiglu}) {
      compare("gated_activation", false, [&](const Kernels& k, float* o) {
        k.gated_activation(x.data(), y.data(), o, n, {type, 1.702f, 7});
      });
    }
    const int64_t rotary = n / 2 * 2;
    for (const bool interleaved : {false, true}) {
      compare("rope", true, [&](const Kernels& k, float* o) { k.rope(o, y.data(), rotary, interleaved); });
    }
  }
  for (const float edge : {-200.0f, -87.4f, 0.0f, 88.3f, 200.0f}) {
    const auto [got, want] = both(isa, [&](const Kernels& k) {
      Floats output(1);
      k.exp_terms(&edge, output.data(), 1, 0, 1);
      return output;
    });
    check(close(got, want), isa, "exp of " + std::to_string(edge));
  }
}

/* Every pattern of the narrow types, and random patterns of the wide one with its infinities, NaNs and subnormals. */
void test_conversions(const Kernels& isa) {
  std::vector<uint16_t> halves(65536);
  for (size_t i = 0; i < halves.size(); i++) halves[i] = static_cast<uint16_t>(i);
  const auto [wide, wanted] = both(isa, [&](const Kernels& k) {
    Floats output(halves.size());
    k.bf16_to_f32(halves.data(), output.data(), static_cast<int64_t>(output.size()));
    return output;
  });
  check(same_bits(wide, wanted), isa, "bf16_to_f32");
  constexpr int64_t kCount = 20011;
  Floats x(kCount);
  for (float& value : x) {
    const auto bits = static_cast<uint32_t>(random_bits());
    std::memcpy(&value, &bits, sizeof value);
  }
  for (size_t i = 0; i < 4000; i++) x[i] = normal(1, 0.02f)[0];
  std::vector<uint16_t> bf16[2];
  std::vector<uint8_t> f8[2];
  const Kernels* tables[] = {&isa, &portable_kernels()};
  for (int i = 0; i < 2; i++) {
    bf16[i].resize(kCount);
    f8[i].resize(kCount);
    tables[i]->f32_to_bf16(x.data(), bf16[i].data(), kCount);
    tables[i]->f32_to_f8(x.data(), f8[i].data(), kCount, 0.5f);
  }
  check(bf16[0] == bf16[1], isa, "f32_to_bf16");
  check(f8[0] == f8[1], isa, "f32_to_f8");
}

void test_matmul(const Kernels& isa) {
  for (const int64_t width : {16, 40, 77, 160}) {
    constexpr int64_t kRows = 11, kOutputs = 19;
    const Floats x = normal(static_cast<size_t>(kRows * width)), w = normal(static_cast<size_t>(kOutputs * width));
    const auto run = [&](const Kernels& k, int64_t first, int64_t rows) {
      Floats output(static_cast<size_t>(rows * kOutputs));
      k.matmul_f32(x.data() + first * width, width, static_cast<int32_t>(rows), w.data(), kOutputs, width,
                   output.data(), kOutputs);
      return output;
    };
    const Floats got = run(isa, 0, kRows);
    check(close(got, run(portable_kernels(), 0, kRows)), isa, "matmul_f32, width " + std::to_string(width));
    Floats alone;
    for (int64_t r = 0; r < kRows; r++) {
      const Floats row = run(isa, r, 1);
      alone.insert(alone.end(), row.begin(), row.end());
    }
    check(same_bits(alone, got), isa, "matmul_f32 gives a row the same bits in every batch");
  }
}

/* One segment's keys and values as float numbers that the cache's type holds exactly, and the cache itself. */
struct Attention {
  KvDType dtype;
  int32_t head_dim, positions;
  Floats keys, values; /* [positions, head_dim] */
  std::vector<uint8_t> key_cache, value_cache;
  std::vector<int64_t> blocks;
  Floats queries;
  std::vector<int32_t> begin, end;

  size_t element(int32_t position, int32_t column) const { return static_cast<size_t>(position * head_dim + column); }
  /* Elements of position and column from the start of their block. */
  size_t key_place(int32_t position, int32_t column) const {
    return static_cast<size_t>((column / 2 * kKvBlock + position % kKvBlock) * 2 + column % 2);
  }
  size_t value_place(int32_t position, int32_t column) const {
    return static_cast<size_t>((position % kKvBlock / 2 * head_dim + column) * 2 + position % 2);
  }

  /* Stores element by element; the blocks lie in descending order, the places of no position hold NaN. */
  void fill_cache() {
    const size_t bytes = dtype == KvDType::kBf16 ? 2 : 1;
    const size_t block_bytes = static_cast<size_t>(kKvBlock * head_dim) * bytes;
    const int32_t num_blocks = (positions + kKvBlock - 1) / kKvBlock;
    for (auto* cache : {&key_cache, &value_cache}) cache->assign(static_cast<size_t>(num_blocks) * block_bytes, 0xff);
    for (int32_t b = 0; b < num_blocks; b++) blocks.push_back((num_blocks - 1 - b) * static_cast<int64_t>(block_bytes));
    const auto put = [&](float x, uint8_t* p) {
      if (dtype == KvDType::kBf16) {
        portable_kernels().f32_to_bf16(&x, reinterpret_cast<uint16_t*>(p), 1);
      } else {
        portable_kernels().f32_to_f8(&x, p, 1, 1);
      }
    };
    for (int32_t j = 0; j < positions; j++) {
      const auto block = static_cast<size_t>(blocks[static_cast<size_t>(j / kKvBlock)]);
      for (int32_t d = 0; d < head_dim; d++) {
        put(keys[element(j, d)], key_cache.data() + block + key_place(j, d) * bytes);
        put(values[element(j, d)], value_cache.data() + block + value_place(j, d) * bytes);
      }
    }
  }

  /* Per row: max, sum, output. */
  Floats run(const Kernels& kernels, int32_t first, int32_t rows) const {
    std::vector<const float*> pointers;
    for (int32_t r = first; r < first + rows; r++) pointers.push_back(queries.data() + r * head_dim);
    const auto n = static_cast<size_t>(rows), width = static_cast<size_t>(head_dim);
    std::vector<uint8_t> prepared(n * width * sizeof(float)), decoded(kDecodedBlocks * kKvBlock * width * 2);
    Floats scores(n * kSegment), max(n), sum(n), output(n * width);
    kernels.prepare_queries(pointers.data(), rows, head_dim, prepared.data());
    int32_t begin_position = positions, end_position = 0;
    for (auto r = static_cast<size_t>(first); r < static_cast<size_t>(first + rows); r++) {
      begin_position = std::min(begin_position, begin[r]);
      end_position = std::max(end_position, end[r]);
    }
    kernels.attend({prepared.data(), rows, head_dim, kScale, dtype, key_cache.data(), value_cache.data(), blocks.data(),
                    static_cast<int32_t>(blocks.size()), begin.data() + first, end.data() + first, begin_position,
                    end_position, scores.data(), decoded.data(), max.data(), sum.data(), output.data()});
    Floats result;
    for (size_t r = 0; r < n; r++) {
      result.push_back(max[r]);
      result.push_back(sum[r]);
      result.insert(result.end(), output.begin() + static_cast<int64_t>(r * width),
                    output.begin() + static_cast<int64_t>((r + 1) * width));
    }
    return result;
  }

  /* output / sum in float64. */
  std::vector<double> exact(int32_t row) const {
    std::vector<double> scores, sums(static_cast<size_t>(head_dim));
    const auto r = static_cast<size_t>(row);
    const double unit = dtype == KvDType::kBf16 ? 1 : 1 / static_cast<double>(kF8Unit);
    double max = -INFINITY, sum = 0;
    for (int32_t j = begin[r]; j < end[r]; j++) {
      double dot = 0;
      for (int32_t d = 0; d < head_dim; d++)
        dot += static_cast<double>(queries[element(row, d)]) * keys[element(j, d)] * unit;
      scores.push_back(dot * static_cast<double>(kScale));
      max = std::max(max, scores.back());
    }
    for (int32_t j = begin[r]; j < end[r]; j++) {
      const double weight = std::exp(scores[static_cast<size_t>(j - begin[r])] - max);
      sum += weight;
      for (int32_t d = 0; d < head_dim; d++) sums[static_cast<size_t>(d)] += weight * values[element(j, d)] * unit;
    }
    for (double& x : sums) x /= sum;
    return sums;
  }

  static constexpr float kScale = 0.11f;
};

double f8_value(int code) {
  const int magnitude = code & 127, exponent = magnitude >> 3;
  const double value = exponent == 0 ? std::ldexp(magnitude, -9) : std::ldexp(8 + (magnitude & 7), exponent - 10);
  return code < 128 ? value : -value;
}

Attention random_attention(KvDType dtype, int32_t head_dim, int32_t rows, int32_t positions) {
  Attention a{dtype, head_dim, positions, {}, {}, {}, {}, {}, {}, {}, {}};
  a.queries = normal(static_cast<size_t>(rows * head_dim));
  for (Floats* x : {&a.keys, &a.values}) {
    *x = normal(static_cast<size_t>(positions * head_dim));
    for (float& value : *x) {
      uint16_t half;
      portable_kernels().f32_to_bf16(&value, &half, 1);
      portable_kernels().bf16_to_f32(&half, &value, 1);
      const auto code = static_cast<int>(random_bits() % 2 * 128 + random_bits() % 127);
      if (dtype == KvDType::kF8E4M3) value = static_cast<float>(f8_value(code));
    }
  }
  a.fill_cache();
  for (int32_t r = 0; r < rows; r++) {
    a.begin.push_back(r % 3 == 2 ? r : 0);
    a.end.push_back(positions - rows + 1 + r);
  }
  return a;
}

/* What a kernel promises of attention's output, relative to its norm: float32 sums, or weights rounded to bf16. */
double attention_tolerance(const Kernels& isa) {
  return std::string_view(isa.name).ends_with("bf16") ? 0x1p-8 : 1e-5;
}

void test_attend(const Kernels& isa) {
  for (const KvDType dtype : {KvDType::kBf16, KvDType::kF8E4M3}) {
    for (const int32_t head_dim : {16, 48, 64, 128}) {
      for (const int32_t rows : {9, 15}) {
        const Attention a = random_attention(dtype, head_dim, rows, 77);
        const size_t width = static_cast<size_t>(head_dim) + 2;
        const Floats got = a.run(isa, 0, rows);
        const std::string what = std::string("attend, ") + (dtype == KvDType::kBf16 ? "bf16" : "e4m3") + ", " +
                                 std::to_string(rows) + " heads of " + std::to_string(head_dim);
        Floats alone;
        for (int32_t r = 0; r < rows; r++) {
          const float* row = got.data() + static_cast<size_t>(r) * width;
          const std::vector<double> want = a.exact(r);
          double difference = 0, norm = 0;
          for (size_t d = 0; d < want.size(); d++) {
            difference += std::pow(row[2 + d] / static_cast<double>(row[1]) - want[d], 2);
            norm += want[d] * want[d];
          }
          check(std::sqrt(difference) <= attention_tolerance(isa) * std::sqrt(norm), isa, what);
          const Floats one = a.run(isa, r, 1);
          alone.insert(alone.end(), one.begin(), one.end());
        }
        check(same_bits(alone, got), isa, what + " gives a row the same bits in every batch");
        const auto [merged, wanted] = both(isa, [&](const Kernels& k) {
          Floats row(got.begin(), got.begin() + static_cast<int64_t>(width));
          const float* other = got.data() + width;
          k.merge_segment(&row[0], &row[1], row.data() + 2, other[0], other[1], other + 2, head_dim);
          return row;
        });
        check(close(merged, wanted), isa, what + " merges");
      }
    }
  }
  /* A lone position has weight 1, so its value comes out as it is read: every code of e4m3. */
  Attention lone{KvDType::kF8E4M3, 256, 1, Floats(256), Floats(256), {}, {}, {}, Floats(256), {0}, {1}};
  Floats expected = {0, 1};
  for (int code = 0; code < 256; code++) {
    const bool is_nan = (code & 127) == 127;
    lone.values[static_cast<size_t>(code)] = is_nan ? 0 : static_cast<float>(f8_value(code));
    expected.push_back(lone.values[static_cast<size_t>(code)] / kF8Unit);
  }
  lone.fill_cache();
  const Floats got = lone.run(isa, 0, 1);
  bool equal = true;
  for (size_t i = 0; i < got.size(); i++) equal = equal && got[i] == expected[i];
  check(equal, isa, "attend reads every e4m3 value exactly");
  lone.value_cache[lone.value_place(0, 127)] = 127;
  check(std::isnan(lone.run(isa, 0, 1)[2 + 127]), isa, "attend reads e4m3's NaN");
}

}  // namespace
}  // namespace moe::test

int main() {
  using namespace moe;
  using namespace moe::test;
  const std::vector<std::string> features = cpu_features();
  std::vector<const Kernels*> tables = {&portable_kernels(), &select_kernels(features)};
#ifdef MOE_X86_64
  if (&select_kernels(features) == &avx512_bf16_kernels()) tables.push_back(&avx512_kernels());
  if (tables.back() == &avx512_kernels()) tables.push_back(&avx2_kernels());
#endif
  for (const Kernels* isa : tables) {
    std::printf("tested: %s\n", isa->name);
    test_rows(*isa);
    test_conversions(*isa);
    test_matmul(*isa);
    test_attend(*isa);
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
