// The formats by their definition, in double and by table search: slow, and written apart from the kernels.
#ifndef MOE_BACKEND_CPU_TEST_REFERENCE_H_
#define MOE_BACKEND_CPU_TEST_REFERENCE_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "packed_weights.h"

namespace moe::test {

inline double e2m1(int code) {
  static const double kValues[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code & 8 ? -kValues[code & 7] : kValues[code & 7];
}

inline double e4m3(int code) {
  const int exponent = (code >> 3) & 15;
  const double magnitude = exponent == 0 ? std::ldexp(code & 7, -9) : std::ldexp(8 + (code & 7), exponent - 10);
  return code & 128 ? -magnitude : magnitude;
}

inline double f16(uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const double magnitude =
      exponent == 0 ? std::ldexp(half & 1023, -24) : std::ldexp(1024 + (half & 1023), exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

inline double bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The code of the nearest magnitude; ties to the even code, which is the even significand in both formats.
inline double nearest(double value, double (*decode)(int), int count) {
  const double magnitude = std::abs(value);
  int best = 0;
  for (int code = 1; code < count; ++code) {
    const double d = std::abs(decode(code) - magnitude);
    const double known = std::abs(decode(best) - magnitude);
    if (d < known || (d == known && code % 2 == 0)) best = code;
  }
  return value < 0 ? -decode(best) : decode(best);
}

struct RandomMatrix {
  MatrixShape shape;
  std::vector<uint8_t> codes;
  std::vector<uint8_t> scale_codes;
  std::vector<float> block_scales;
  std::vector<float> row_factors;
  std::vector<float> bias;

  MatrixSource source() const {
    MatrixSource s;
    s.codes = codes.data();
    s.scale_codes = scale_codes.data();
    s.block_scales = block_scales.data();
    s.row_factors = row_factors.data();
    s.bias = bias.data();
    return s;
  }

  double value(int64_t row, int64_t column) const {
    const int64_t k = shape.columns;
    const double factor = row_factors[row];
    const uint8_t* pair = codes.data() + (row * k + column) * 2;
    switch (shape.format) {
      case WeightFormat::kNvfp4:
      case WeightFormat::kMxfp4: {
        const int code = codes[row * (k / 2) + column / 2] >> (column % 2 * 4) & 15;
        if (shape.format == WeightFormat::kNvfp4)
          return e2m1(code) * e4m3(scale_codes[row * (k / 16) + column / 16]) * factor;
        return std::ldexp(e2m1(code), scale_codes[row * (k / 32) + column / 32] - 127) * factor;
      }
      case WeightFormat::kFp8:
        return e4m3(codes[row * k + column]) * factor;
      case WeightFormat::kFp8Block128:
        return e4m3(codes[row * k + column]) * block_scales[row / 128 * ceil_div(k, 128) + column / 128] * factor;
      case WeightFormat::kBf16:
        return bf16(static_cast<uint16_t>(pair[0] | pair[1] << 8)) * factor;
      default:
        return f16(static_cast<uint16_t>(pair[0] | pair[1] << 8)) * factor;
    }
  }
};

inline RandomMatrix random_matrix(const MatrixShape& shape, std::mt19937& random) {
  RandomMatrix m;
  m.shape = shape;
  const auto count = static_cast<size_t>(shape.rows * shape.columns);
  std::normal_distribution<float> normal;
  const auto fill16 = [&](bool half) {
    for (size_t i = 0; i < count; ++i) {
      const float x = normal(random);
      // Any pattern with a moderate exponent is a fine half: sign, exponents 8 to 15, all fractions; some are
      // subnormal.
      const uint16_t bits = !half ? to_bf16(x) : i % 17 == 0 ? random() & 0x83ff : (random() & 0x9fff) | 0x2000;
      m.codes.push_back(static_cast<uint8_t>(bits));
      m.codes.push_back(static_cast<uint8_t>(bits >> 8));
    }
  };
  if (is_fp4(shape.format)) {
    for (size_t i = 0; i < count / 2; ++i) m.codes.push_back(static_cast<uint8_t>(random()));
    const bool nv = shape.format == WeightFormat::kNvfp4;
    for (size_t i = 0; i < count / (nv ? 16 : 32); ++i) {
      // All e4m3 scales, subnormals and a negative one included; e8m0 around one.
      m.scale_codes.push_back(static_cast<uint8_t>(nv ? (i == 7 ? 0xb1 : random() % 127) : 120 + random() % 12));
    }
  } else if (shape.format == WeightFormat::kFp8 || shape.format == WeightFormat::kFp8Block128) {
    for (size_t i = 0; i < count; ++i) {
      const auto code = static_cast<uint8_t>(random());
      m.codes.push_back((code & 127) == 127 ? 3 : code);
    }
    if (shape.format == WeightFormat::kFp8Block128) {
      const int64_t blocks = ceil_div(shape.rows, 128) * ceil_div(shape.columns, 128);
      for (int64_t i = 0; i < blocks; ++i) m.block_scales.push_back(0.001f * static_cast<float>(1 + random() % 100));
    }
  } else {
    fill16(shape.format == WeightFormat::kF16);
  }
  for (int64_t r = 0; r < shape.rows; ++r) {
    m.row_factors.push_back(shape.format == WeightFormat::kFp8Block128 ? 1.0f
                                                                       : 0.01f * static_cast<float>(1 + random() % 50));
    m.bias.push_back(normal(random));
  }
  return m;
}

// What an input row stands for once it is quantized, or rounded to bf16, as the kernel's kind says; docs/numerics.md.
inline std::vector<double> quantized_input(const float* x, int64_t columns, InputKind kind, Element element,
                                           float scale) {
  std::vector<double> out(static_cast<size_t>(columns));
  const auto fp8 = [&](int64_t begin, int64_t end, float s) {
    for (int64_t k = begin; k < end; ++k) {
      const float y = x[k] / s;
      out[static_cast<size_t>(k)] = nearest(y > 448 ? 448 : y < -448 ? -448 : y, e4m3, 127) * s;
    }
  };
  const auto amax = [&](int64_t begin, int64_t end) {
    float largest = 0;
    for (int64_t k = begin; k < end; ++k) largest = std::max(largest, std::abs(x[k]));
    return largest;
  };
  switch (kind) {
    case InputKind::kFloat:
    case InputKind::kBf16:
      for (int64_t k = 0; k < columns; ++k)
        out[static_cast<size_t>(k)] = element == Element::kBf16 ? bf16(to_bf16(x[k])) : x[k];
      break;
    case InputKind::kNvfp4:
      for (int64_t g = 0; g < columns; g += 16) {
        const auto block = static_cast<float>(nearest(std::min(amax(g, g + 16) / (6.0f * scale), 448.0f), e4m3, 127));
        for (int64_t k = g; k < g + 16; ++k) {
          const double q = block > 0 ? nearest(std::min(6.0f, std::max(-6.0f, x[k] / (block * scale))), e2m1, 8) : 0;
          out[static_cast<size_t>(k)] = q * block * scale;
        }
      }
      break;
    case InputKind::kFp8Static:
      fp8(0, columns, scale);
      break;
    case InputKind::kFp8Token:
      fp8(0, columns, std::max(amax(0, columns) / 448.0f, 1.0f / (448.0f * 512.0f)));
      break;
    case InputKind::kFp8Group128:
      for (int64_t k = 0; k < columns; k += 128) {
        const int64_t end = std::min(columns, k + 128);
        fp8(k, end, std::max(amax(k, end), 1e-10f) / 448.0f);
      }
      break;
  }
  return out;
}

}  // namespace moe::test

#endif  // MOE_BACKEND_CPU_TEST_REFERENCE_H_
