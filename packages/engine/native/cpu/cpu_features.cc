#include "cpu_features.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace moe {
namespace {

bool has_all(const std::vector<std::string>& features, std::initializer_list<const char*> wanted) {
  return std::all_of(wanted.begin(), wanted.end(), [&](const char* name) {
    return std::find(features.begin(), features.end(), name) != features.end();
  });
}

#if defined(__x86_64__)

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf = 0) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

/* Register sets that the system saves: Intel SDM volume 1, 13.3. */
uint64_t saved_state() {
  if ((cpuid(1).ecx >> 27 & 1) == 0) return 0; /* OSXSAVE */
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

#endif

}  // namespace

std::string cpu_brand() {
#if defined(__x86_64__)
  if (cpuid(0x80000000u).eax >= 0x80000004u) {
    char text[49] = {};
    for (unsigned i = 0; i < 3; i++) {
      const Registers r = cpuid(0x80000002u + i);
      std::memcpy(text + 16 * i, &r, sizeof r);
    }
    const std::string brand(text);
    const size_t begin = brand.find_first_not_of(' ');
    if (begin != std::string::npos) return brand.substr(begin, brand.find_last_not_of(' ') - begin + 1);
  }
  return "x86-64 processor";
#elif defined(__aarch64__)
  return "ARM64 processor";
#else
  return "processor";
#endif
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  const uint64_t state = saved_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tiles = (state & 0x60000) == 0x60000;
  const Registers basic = cpuid(1), extended = cpuid(7), more = cpuid(7, 1);
  const auto add = [&](const char* name, unsigned bits, unsigned bit, bool usable) {
    if ((bits >> bit & 1) != 0 && usable) names.emplace_back(name);
  };
  add("avx2", extended.ebx, 5, ymm);
  add("fma", basic.ecx, 12, ymm);
  add("f16c", basic.ecx, 29, ymm);
  add("avx512f", extended.ebx, 16, zmm);
  add("avx512bw", extended.ebx, 30, zmm);
  add("avx512vl", extended.ebx, 31, zmm);
  add("avx512dq", extended.ebx, 17, zmm);
  add("avx512vbmi", extended.ecx, 1, zmm);
  add("avx512vnni", extended.ecx, 11, zmm);
  add("avx512bf16", more.eax, 5, zmm);
  add("avxvnni", more.eax, 4, ymm);
  add("amx-bf16", extended.edx, 22, tiles);
#elif defined(__aarch64__)
  names.emplace_back("neon"); /* part of the base architecture */
#if defined(__linux__)
  if ((getauxval(AT_HWCAP) & (1ul << 20)) != 0) names.emplace_back("dotprod"); /* HWCAP_ASIMDDP */
  if ((getauxval(AT_HWCAP2) & (1ul << 13)) != 0) names.emplace_back("i8mm");   /* HWCAP2_I8MM */
#endif
#endif
  return names;
}

const Kernels& select_kernels([[maybe_unused]] const std::vector<std::string>& features) {
#ifdef MOE_X86_64
  const bool avx2 = has_all(features, {"avx2", "fma", "f16c"});
  const bool avx512 = avx2 && has_all(features, {"avx512f", "avx512bw", "avx512vl", "avx512dq"});
  if (avx512 && has_all(features, {"avx512vbmi", "avx512bf16"})) return avx512_bf16_kernels();
  if (avx512) return avx512_kernels();
  if (avx2) return avx2_kernels();
#elif defined(MOE_ARM64)
  if (has_all(features, {"neon"})) return neon_kernels();
#else
  (void)has_all;
#endif
  return portable_kernels();
}

}  // namespace moe
