// Tests of the kernels that need no Node: every weight format, input kind and instruction set of this machine, against
// reference.h.
#include <algorithm>
#include <cstdio>
#include <string>

#include "cpu_features.h"
#include "experts_kernel.h"
#include "linear_kernel.h"
#include "moe/status.hpp"
#include "reference.h"
#include "thread_pool.h"

namespace moe::test {
namespace {

int failures = 0;

void check(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

const char* const kFormats[] = {"nvfp4", "mxfp4", "fp8", "fp8-block128", "bf16", "f16"};
const char* const kIsaTitles[] = {"portable path", "AVX2", "AVX-512 with BF16", "NEON"};
const char* const kInputs[] = {"float", "nvfp4", "fp8-static", "fp8-token", "fp8-group128", "bf16"};

std::string describe(const IsaKernels& isa, WeightFormat format, InputKind input) {
  return std::string(isa.name) + " " + kFormats[static_cast<int>(format)] + " x " + kInputs[static_cast<int>(input)];
}

double relative_error(const std::vector<float>& got, const std::vector<double>& want) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

// The scales a kernel of this kind is given.
std::vector<float> static_scales(InputKind input, const std::vector<float>& scales) {
  return input == InputKind::kNvfp4 || input == InputKind::kFp8Static ? scales : std::vector<float>{};
}

std::vector<float> random_rows(int64_t rows, int64_t columns, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(rows * columns));
  for (float& value : x) value = normal(random);
  // A row of zeros and one with a single spike: scales of zero, saturation.
  for (int64_t k = 0; k < columns && rows > 2; ++k) x[static_cast<size_t>(k)] = 0;
  if (rows > 2) x[static_cast<size_t>(columns + 5)] = 300;
  return x;
}

std::vector<float> run_linear(const moe_kernel& kernel, const std::vector<float>& x, int64_t tokens, int64_t columns,
                              int64_t rows, const ThreadPool& pool, bool accumulate = false) {
  std::vector<float> output(static_cast<size_t>(tokens * rows), 1.0f);
  moe_linear_args args{};
  args.size = sizeof(args);
  args.num_tokens = tokens;
  args.in_features = static_cast<int32_t>(columns);
  args.out_features = static_cast<int32_t>(rows);
  args.input = x.data();
  args.input_stride = columns;
  args.output = output.data();
  args.output_stride = rows;
  args.accumulate = accumulate ? 1 : 0;
  moe_error error = make_error();
  const int32_t status = run_kernel(kernel, &args, tokens, pool.abi(), &error);
  check(status == MOE_OK, std::string("status: ") + error.message);
  return output;
}

void test_pack(WeightFormat format, int64_t rows, int64_t columns) {
  std::mt19937 random(7);
  const RandomMatrix m = random_matrix({format, rows, columns, false}, random);
  const auto weights = PackedWeights::for_modules({m.shape});
  check(weights->pack(0, m.source()) == PackResult::kOk, "pack");
  std::vector<uint8_t> codes(m.codes.size());
  std::vector<uint8_t> scales(m.scale_codes.size());
  weights->unpack(0, codes.data(), scales.empty() ? nullptr : scales.data());
  check(codes == m.codes && scales == m.scale_codes,
        std::string("unpack restores every bit of ") + kFormats[static_cast<int>(format)]);
}

void test_nan_is_refused() {
  std::mt19937 random(8);
  RandomMatrix m = random_matrix({WeightFormat::kNvfp4, 16, 64, false}, random);
  m.scale_codes[3] = 0x7f;
  const auto weights = PackedWeights::for_modules({m.shape});
  check(weights->pack(0, m.source()) == PackResult::kNanCode, "a NaN scale is refused");
  m.scale_codes[3] = 1;
  m.row_factors[5] = NAN;
  check(weights->pack(0, m.source()) == PackResult::kBadScale, "a NaN factor is refused");
}

// Two modules with scales of their own and partial tiles; 27 tokens together and one by one.
void test_linear(const IsaKernels& isa, WeightFormat format, InputKind input, int64_t columns, const ThreadPool& pool) {
  std::mt19937 random(static_cast<uint32_t>(columns) + static_cast<uint32_t>(format) * 7);
  constexpr int64_t kTokens = 27;
  const int64_t rows[2] = {24, 133};
  std::vector<RandomMatrix> modules;
  for (const int64_t n : rows) modules.push_back(random_matrix({format, n, columns, true}, random));
  const auto weights = PackedWeights::for_modules({modules[0].shape, modules[1].shape});
  for (size_t i = 0; i < 2; ++i) check(weights->pack(i, modules[i].source()) == PackResult::kOk, "pack");
  const std::vector<float> scales = {0.003f, 0.0071f};
  moe_kernel kernel = make_linear_kernel({weights, &isa, input, static_scales(input, scales), "test"});
  const std::vector<float> x = random_rows(kTokens, columns, random);
  const int64_t total = rows[0] + rows[1];
  const std::vector<float> y = run_linear(kernel, x, kTokens, columns, total, pool);
  std::vector<double> want;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (size_t i = 0; i < 2; ++i) {
      const std::vector<double> q =
          quantized_input(x.data() + t * columns, columns, input, isa.element(format, input), scales[i]);
      for (int64_t n = 0; n < rows[i]; ++n) {
        double sum = modules[i].bias[static_cast<size_t>(n)];
        for (int64_t k = 0; k < columns; ++k) sum += q[static_cast<size_t>(k)] * modules[i].value(n, k);
        want.push_back(sum);
      }
    }
  }
  const double error = relative_error(y, want);
  check(error < 1e-5,
        describe(isa, format, input) + " linear K=" + std::to_string(columns) + " error " + std::to_string(error));
  const std::vector<float> added = run_linear(kernel, x, kTokens, columns, total, pool, true);
  bool equal = true;
  for (size_t i = 0; i < y.size(); ++i) equal = equal && added[i] == 1.0f + y[i];
  check(equal, describe(isa, format, input) + " accumulates");
  for (int64_t t = 0; t < kTokens; ++t) {
    const std::vector<float> alone(x.begin() + t * columns, x.begin() + (t + 1) * columns);
    const std::vector<float> row = run_linear(kernel, alone, 1, columns, total, pool);
    equal = equal && std::memcmp(row.data(), y.data() + t * total, static_cast<size_t>(total) * 4) == 0;
  }
  check(equal, describe(isa, format, input) + " gives a row the same bits in every batch");
  kernel.destroy(kernel.self);
}

// The activation alone: accurate over all of its range, and the same bits on every instruction set.
void test_activation() {
  const RowLayout input = make_row_layout(InputKind::kFloat, Element::kF32, 16);
  const RowLayout row = make_row_layout(InputKind::kFloat, Element::kF32, 16);
  alignas(64) float ones[16];
  std::fill(ones, ones + 16, 1.0f);
  for (const bool swiglu : {false, true}) {
    const Activation activation = {swiglu ? ActivationKind::kSwiglu : ActivationKind::kSilu, 1.702f, 7.0f};
    const GateUpArgs args = {{ones, nullptr}, {ones, nullptr}, activation, &input, &row, 1.0f};
    double worst = 0;
    bool equal = true;
    for (float from = -95; from < 95; from += 0.37f) {
      alignas(64) float gate[16];
      alignas(64) float up[16];
      for (int i = 0; i < 16; ++i) {
        gate[i] = from + 0.02f * static_cast<float>(i);
        up[i] = 9.0f - 1.3f * static_cast<float>(i);
      }
      std::vector<uint8_t> first;
      for (const Isa isa : kIsas) {
        const IsaKernels* kernels = find_kernels(isa);
        if (kernels == nullptr) continue;
        alignas(64) uint8_t record[2048];
        uint8_t* records[1] = {record};
        const uint8_t* inputs[1] = {nullptr};
        kernels->gate_up(args, 1, inputs, gate, up, 0, records);
        const std::vector<uint8_t> bytes(record, record + 64);
        if (first.empty()) first = bytes;
        equal = equal && bytes == first;
      }
      for (int i = 0; i < 16; ++i) {
        float got;
        std::memcpy(&got, first.data() + i * 4, 4);
        const double g = swiglu ? std::min(gate[i], 7.0f) : gate[i];
        const double u = swiglu ? std::clamp(up[i], -7.0f, 7.0f) + 1.0 : up[i];
        const double want = u * g / (1 + std::exp(-(swiglu ? 1.702f : 1.0f) * g));
        // Units in the last place: 2 of exp, some of the quotient and the products; alpha * g is rounded before exp
        // sees it.
        const double allowed = 6e-7 + (swiglu ? std::abs(1.702 * g) * 6e-8 : 0);
        // Where the sigmoid saturates the result is next to nothing, and its last bits are not judged.
        if (std::abs(want) > 1e-30) worst = std::max(worst, std::abs(got - want) / std::abs(want) / allowed);
      }
    }
    check(worst < 1, "the activation is accurate: " + std::to_string(worst) + " of what is allowed");
    check(equal, "the activation has the same bits on every instruction set");
  }
}

double silu(double g) { return g / (1 + std::exp(-g)); }

void test_experts(const IsaKernels& isa, WeightFormat format, InputKind input, bool equal_scales,
                  const ThreadPool& pool) {
  std::mt19937 random(99 + static_cast<uint32_t>(format));
  constexpr int64_t kTokens = 19;
  constexpr int64_t kHidden = 160;
  constexpr int64_t kIntermediate = 96;
  constexpr int64_t kExperts = 5;
  constexpr int32_t kTopK = 3;
  std::vector<RandomMatrix> m;
  const auto weights = PackedWeights::for_experts({format, kIntermediate, kHidden, true},
                                                  {format, kHidden, kIntermediate, true}, kExperts);
  std::vector<float> scales;
  for (size_t i = 0; i < kExperts * 3; ++i) {
    const bool down = i % 3 == 2;
    m.push_back(random_matrix({format, down ? kHidden : kIntermediate, down ? kIntermediate : kHidden, true}, random));
    for (float& f : m.back().row_factors)
      f *= format == WeightFormat::kNvfp4 ? 1e-3f : format == WeightFormat::kFp8 ? 1e-2f : 0.1f;
    if (format == WeightFormat::kFp8Block128) {
      for (float& f : m.back().row_factors) f = 1;
      for (float& f : m.back().block_scales) f *= 1e-2f;
    }
    check(weights->pack(i, m.back().source()) == PackResult::kOk, "pack");
    scales.push_back(equal_scales ? (down ? 0.05f : 0.004f) : 0.004f + 0.001f * static_cast<float>(i));
  }
  moe_kernel kernel = make_experts_kernel({weights, &isa, input, static_scales(input, scales), kTopK, {}, "test"});
  std::vector<float> x = random_rows(kTokens, kHidden, random);
  std::vector<int32_t> slots;
  std::vector<float> topk_weights;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int j = 0; j < kTopK; ++j) {
      slots.push_back(t == 3 ? -1 : static_cast<int32_t>((t * 2 + j * (t % 2 + 1)) % (kExperts + 1)) - 1);
      topk_weights.push_back(0.1f + 0.2f * static_cast<float>(j));
    }
  }
  const auto run = [&](int64_t first, int64_t tokens) {
    std::vector<float> output(static_cast<size_t>(tokens * kHidden), NAN);
    moe_experts_args args{};
    args.size = sizeof(args);
    args.num_tokens = tokens;
    args.top_k = kTopK;
    args.hidden_size = kHidden;
    args.hidden_states = x.data() + first * kHidden;
    args.hidden_stride = kHidden;
    args.topk_slots = slots.data() + first * kTopK;
    args.topk_weights = topk_weights.data() + first * kTopK;
    args.output = output.data();
    args.output_stride = kHidden;
    moe_error error = make_error();
    check(run_kernel(kernel, &args, tokens, pool.abi(), &error) == MOE_OK, std::string("status: ") + error.message);
    return output;
  };
  const std::vector<float> y = run(0, kTokens);
  std::vector<double> want(static_cast<size_t>(kTokens * kHidden));
  const Element element = isa.element(format, input);
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int j = 0; j < kTopK; ++j) {
      const int32_t e = slots[static_cast<size_t>(t * kTopK + j)];
      if (e < 0) continue;
      std::vector<float> h;
      const auto product = [&](size_t index, const std::vector<double>& q, int64_t n) {
        double sum = m[index].bias[static_cast<size_t>(n)];
        for (size_t k = 0; k < q.size(); ++k) sum += q[k] * m[index].value(n, static_cast<int64_t>(k));
        return sum;
      };
      const auto base = static_cast<size_t>(e) * 3;
      const auto gate_in = quantized_input(x.data() + t * kHidden, kHidden, input, element, scales[base]);
      const auto up_in = quantized_input(x.data() + t * kHidden, kHidden, input, element, scales[base + 1]);
      for (int64_t n = 0; n < kIntermediate; ++n) {
        const auto value = static_cast<float>(silu(product(base, gate_in, n)) * product(base + 1, up_in, n));
        h.push_back(input == InputKind::kFloat ? value : static_cast<float>(bf16(to_bf16(value))));
      }
      const auto down_in = quantized_input(h.data(), kIntermediate, input, element, scales[base + 2]);
      for (int64_t n = 0; n < kHidden; ++n) {
        want[static_cast<size_t>(t * kHidden + n)] +=
            topk_weights[static_cast<size_t>(t * kTopK + j)] * product(base + 2, down_in, n);
      }
    }
  }
  // A sum that lands beside a rounding boundary of the intermediate moves one value by a step: 2^-9, or half of that on
  // average.
  const double error = relative_error(y, want);
  const double bound = input == InputKind::kNvfp4                               ? 0.03
                       : input == InputKind::kFloat && element == Element::kF32 ? 1e-5
                                                                                : 0.004;
  check(error < bound, describe(isa, format, input) + " experts error " + std::to_string(error));
  bool equal = true;
  for (int64_t t = 0; t < kTokens; ++t) {
    const std::vector<float> row = run(t, 1);
    equal = equal && std::memcmp(row.data(), y.data() + t * kHidden, kHidden * 4) == 0;
  }
  check(equal, describe(isa, format, input) + " experts give a token the same bits in every batch");
  kernel.destroy(kernel.self);
}

}  // namespace
}  // namespace moe::test

int main() {
  using namespace moe;
  using namespace moe::test;
  ThreadPool pool(3);
  int pairs = 0;
  for (const Isa isa : kIsas) {
    const IsaKernels* kernels = find_kernels(isa);
    if (kernels != nullptr) {
      std::printf("tested: %s\n", kernels->name);
    } else {
      std::printf("skipped: this processor has no %s\n", kIsaTitles[static_cast<int>(isa)]);
    }
  }
  test_nan_is_refused();
  test_activation();
  for (const WeightFormat format : {WeightFormat::kNvfp4, WeightFormat::kMxfp4, WeightFormat::kFp8,
                                    WeightFormat::kFp8Block128, WeightFormat::kBf16, WeightFormat::kF16}) {
    test_pack(format, 40, 96);
    test_pack(format, 129, 416);
    if (!is_fp4(format)) test_pack(format, 7, 19);
    for (const Isa isa : kIsas) {
      const IsaKernels* kernels = find_kernels(isa);
      if (kernels == nullptr) continue;
      for (const InputKind input : {InputKind::kFloat, InputKind::kNvfp4, InputKind::kFp8Static, InputKind::kFp8Token,
                                    InputKind::kFp8Group128, InputKind::kBf16}) {
        if (kernels->tile(format, input, 1) == nullptr) continue;
        ++pairs;
        test_linear(*kernels, format, input, 416, pool);
        test_linear(*kernels, format, input, is_fp4(format) ? 96 : 77, pool);
        test_experts(*kernels, format, input, true, pool);
        test_experts(*kernels, format, input, false, pool);
      }
    }
  }
  std::printf("%d combinations, %d failures\n", pairs, failures);
  return failures == 0 ? 0 : 1;
}
