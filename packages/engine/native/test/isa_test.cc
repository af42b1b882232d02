/* Tests of the operators' arithmetic that need no Node: every instruction set of this machine against the portable
 * one, whose text is their meaning. What rounds to a type, moves bits or compares is held to equal bits; sums and exp
 * to 1e-5, because the others fuse products into sums. */
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cpu/cpu_features.h"
#include "cpu/dot_rates.h"
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

struct Attention {
  KvDType dtype;
  int32_t head_dim;
  std::vector<uint8_t> keys, values;
  std::vector<int64_t> offsets;
  Floats queries;
  std::vector<int32_t> begin, end;

  /* Per row: max, sum, output. */
  Floats run(const Kernels& kernels, int32_t first, int32_t rows) const {
    std::vector<const float*> pointers;
    for (int32_t r = first; r < first + rows; r++) pointers.push_back(queries.data() + r * head_dim);
    const auto n = static_cast<size_t>(rows);
    Floats scores(n * kSegment), max(n), sum(n), output(n * static_cast<size_t>(head_dim));
    const int32_t positions = static_cast<int32_t>(offsets.size());
    kernels.attend({pointers.data(), rows, head_dim, 0.11f, dtype, keys.data(), values.data(), offsets.data(),
                    begin.data() + first, end.data() + first, 0, positions, scores.data(), max.data(), sum.data(),
                    output.data()});
    Floats result;
    for (size_t r = 0; r < n; r++) {
      result.push_back(max[r]);
      result.push_back(sum[r]);
      for (int32_t d = 0; d < head_dim; d++) result.push_back(output[r * static_cast<size_t>(head_dim) + d]);
    }
    return result;
  }
};

Attention random_attention(KvDType dtype, int32_t head_dim, int32_t rows, int32_t positions) {
  Attention a{dtype, head_dim, {}, {}, {}, normal(static_cast<size_t>(rows * head_dim)), {}, {}};
  const int64_t elements = int64_t{positions} * head_dim;
  for (std::vector<uint8_t>* cache : {&a.keys, &a.values}) {
    const Floats x = normal(static_cast<size_t>(elements));
    cache->resize(x.size() * (dtype == KvDType::kBf16 ? 2 : 1));
    if (dtype == KvDType::kBf16) {
      portable_kernels().f32_to_bf16(x.data(), reinterpret_cast<uint16_t*>(cache->data()), elements);
    } else {
      portable_kernels().f32_to_f8(x.data(), cache->data(), elements, 0.01f);
    }
  }
  const int64_t row_bytes = static_cast<int64_t>(a.keys.size()) / positions;
  for (int32_t j = 0; j < positions; j++) a.offsets.push_back((positions - 1 - j) * row_bytes);
  for (int32_t r = 0; r < rows; r++) {
    a.begin.push_back(r % 3 == 2 ? r : 0);
    a.end.push_back(positions - rows + 1 + r);
  }
  return a;
}

void test_attend(const Kernels& isa) {
  for (const KvDType dtype : {KvDType::kBf16, KvDType::kF8E4M3}) {
    for (const int32_t head_dim : {16, 48, 64, 128}) {
      constexpr int32_t kRows = 9;
      const Attention a = random_attention(dtype, head_dim, kRows, 77);
      const Floats got = a.run(isa, 0, kRows);
      const std::string what = std::string("attend, ") + (dtype == KvDType::kBf16 ? "bf16" : "e4m3") + " heads of " +
                               std::to_string(head_dim);
      check(close(got, a.run(portable_kernels(), 0, kRows)), isa, what);
      Floats alone;
      for (int32_t r = 0; r < kRows; r++) {
        const Floats row = a.run(isa, r, 1);
        alone.insert(alone.end(), row.begin(), row.end());
      }
      check(same_bits(alone, got), isa, what + " gives a row the same bits in every batch");
      const auto [merged, wanted] = both(isa, [&](const Kernels& k) {
        Floats row(got.begin(), got.begin() + head_dim + 2);
        const float* other = got.data() + head_dim + 2;
        k.merge_segment(&row[0], &row[1], row.data() + 2, other[0], other[1], other + 2, head_dim);
        return row;
      });
      check(close(merged, wanted), isa, what + " merges");
    }
  }
  /* A lone position has weight 1, so its value comes out as it is read: every code of e4m3. */
  const std::vector<uint8_t> zeros(256);
  Attention lone{KvDType::kF8E4M3, 256, zeros, zeros, {0}, Floats(256), {0}, {1}};
  Floats expected = {0, 1};
  for (int code = 0; code < 256; code++) {
    const int magnitude = code & 127, exponent = magnitude >> 3;
    const bool is_nan = magnitude == 127;
    lone.values[static_cast<size_t>(code)] = static_cast<uint8_t>(is_nan ? 0 : code);
    const double value = exponent == 0 ? std::ldexp(magnitude, -9) : std::ldexp(8 + (magnitude & 7), exponent - 10);
    expected.push_back(is_nan ? 0.0f : static_cast<float>((code < 128 ? value : -value) / kF8Unit));
  }
  const Floats got = lone.run(isa, 0, 1);
  bool equal = true;
  for (size_t i = 0; i < got.size(); i++) equal = equal && got[i] == expected[i];
  check(equal, isa, "attend reads every e4m3 value exactly");
  lone.values[127] = 127;
  check(std::isnan(lone.run(isa, 0, 1)[2 + 127]), isa, "attend reads e4m3's NaN");
}

/* That every loop runs here and counts what it did; how fast is no matter for a test. */
void test_dot_loops(const DotLoops& loops, const char* name) {
  for (const DotLoop loop : {loops.int8, loops.bf16, loops.f32}) {
    if (loop == nullptr || (loop(3) > 0 && 2 * loop(3) == loop(6))) continue;
    ++failures;
    std::printf("FAILED %s: a dot loop counts wrongly\n", name);
  }
}

}  // namespace
}  // namespace moe::test

int main() {
  using namespace moe;
  using namespace moe::test;
  const std::vector<std::string> features = cpu_features();
  std::vector<const Kernels*> tables = {&portable_kernels(), &select_kernels(features)};
#ifdef MOE_X86_64
  if (&select_kernels(features) == &avx512_kernels()) tables.push_back(&avx2_kernels());
#endif
  for (const Kernels* isa : tables) {
    std::printf("tested: %s\n", isa->name);
    test_rows(*isa);
    test_conversions(*isa);
    test_matmul(*isa);
    test_attend(*isa);
  }
  test_dot_loops(portable_dot_loops(), "portable");
  test_dot_loops(select_dot_loops(features), "the widest");
#ifdef MOE_X86_64
  if (&select_kernels(features) == &avx512_kernels()) test_dot_loops(avx2_dot_loops(), "avx2");
#elif defined(MOE_ARM64)
  test_dot_loops(neon_dot_loops(), "neon");
#endif
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
