#include "cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace moe {

#if defined(__x86_64__)
namespace {

// Register state that the operating system handles (Intel SDM volume 1, 13.3): bits 1, 2: SSE and AVX; 5, 6, 7:
// AVX-512.
uint64_t enabled_state() {
  uint32_t low = 0;
  uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

struct Features {
  bool avx2 = false;
  bool avxvnni = false;
  bool avx512 = false;
};

constexpr bool has_all(uint32_t value, uint32_t bits) { return (value & bits) == bits; }

Features detect() {
  Features features;
  uint32_t a = 0;
  uint32_t b = 0;
  uint32_t c = 0;
  uint32_t d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return features;
  constexpr uint32_t kOsxsave = 1u << 27;
  constexpr uint32_t kAvx = 1u << 28;
  constexpr uint32_t kFma = 1u << 12;
  constexpr uint32_t kF16c = 1u << 29;
  if (!has_all(c, kOsxsave | kAvx | kFma | kF16c)) return features;
  const uint64_t state = enabled_state();
  if ((state & 0x6) != 0x6) return features;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return features;
  features.avx2 = has_all(b, 1u << 5);
  // F, DQ, BW, VL; VBMI, VNNI.
  const bool avx512 = has_all(b, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31) && has_all(c, 1u << 1 | 1u << 11);
  // EAX of leaf 7 is the number of its further parts.
  if (!features.avx2 || a < 1 || __get_cpuid_count(7, 1, &a, &b, &c, &d) == 0) return features;
  features.avxvnni = has_all(a, 1u << 4);
  features.avx512 = avx512 && has_all(a, 1u << 5) && (state & 0xe6) == 0xe6;  // BF16
  return features;
}

const Features& features() {
  static const Features detected = detect();
  return detected;
}

}  // namespace

bool supports(Isa isa) {
  return isa == Isa::kPortable || (isa == Isa::kAvx2 && features().avx2) || (isa == Isa::kAvx512 && features().avx512);
}

const IsaKernels* find_kernels(Isa isa) {
  if (!supports(isa)) return nullptr;
  switch (isa) {
    case Isa::kAvx512:
      return &avx512_kernels();
    case Isa::kAvx2:
      return &avx2_kernels(features().avxvnni);
    default:
      return &portable_kernels();
  }
}

#elif defined(__aarch64__)
namespace {

NeonDot detect() {
#if defined(__linux__)
  constexpr unsigned long kDotprod = 1ul << 20;  // HWCAP_ASIMDDP
  constexpr unsigned long kI8mm = 1ul << 13;     // HWCAP2_I8MM
  if ((getauxval(AT_HWCAP) & kDotprod) == 0) return NeonDot::kWidening;
  return (getauxval(AT_HWCAP2) & kI8mm) == 0 ? NeonDot::kDotprod : NeonDot::kI8mm;
#else
  return NeonDot::kWidening;
#endif
}

}  // namespace

// NEON is part of the base architecture.
bool supports(Isa isa) { return isa == Isa::kPortable || isa == Isa::kNeon; }

const IsaKernels* find_kernels(Isa isa) {
  static const NeonDot dot = detect();
  if (isa == Isa::kNeon) return &neon_kernels(dot);
  return isa == Isa::kPortable ? &portable_kernels() : nullptr;
}

#else

bool supports(Isa isa) { return isa == Isa::kPortable; }

const IsaKernels* find_kernels(Isa isa) { return isa == Isa::kPortable ? &portable_kernels() : nullptr; }

#endif

}  // namespace moe
