/*
 * Attention through vdpbf16ps, which adds two products of bf16 to a float32 sum. Included after attention_kernels.h for
 * processors with AVX512_BF16 and AVX512_VBMI.
 *
 * Keys and values are bf16 or e4m3, so nothing of them is lost. A query is the sum of two bf16, which leaves 2^-17 of
 * it. A softmax weight is rounded to bf16 (2^-9), and the sum that divides the output is that of the rounded weights:
 * the output is a true mean of the values, with weights that are off by at most 2^-8 against each other. The
 * instruction takes subnormal numbers as 0.
 */
namespace moe::MOE_ISA {

struct Bf16Products {
  using Pairs = __m512i;
  static constexpr int64_t kBytes = 2;
  static constexpr int64_t kWeightBytes = 2;

  static inline Pairs load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static inline F widen(__m256bh x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(x)), 16));
  }
  static inline F dot_products(F sum, Pairs x, const uint8_t* pair) {
    const __m512i factors = _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(pair));
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(factors));
  }
  /* Each pair twice: its upper part, its lower part. */
  static inline void store_query(F x, uint8_t* pairs, int64_t stride) {
    const __m512i in_turn = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m256bh upper = _mm512_cvtneps_pbh(x);
    const __m256bh lower = _mm512_cvtneps_pbh(sub(x, widen(upper)));
    alignas(64) uint8_t parts[8 * kQueryPairBytes];
    _mm512_store_si512(parts, _mm512_permutex2var_epi32(_mm512_castsi256_si512(reinterpret_cast<__m256i>(upper)),
                                                        in_turn,
                                                        _mm512_castsi256_si512(reinterpret_cast<__m256i>(lower))));
    for (int i = 0; i < 8; i++) __builtin_memcpy(pairs + i * stride, parts + i * kQueryPairBytes, kQueryPairBytes);
  }
  static inline F dot(const uint8_t* query, Pairs keys, F sum) {
    return dot_products(dot_products(sum, keys, query), keys, query + 4);
  }
  static inline F accumulate(const uint8_t* weights, Pairs values, F sum) { return dot_products(sum, values, weights); }
  static inline F store_weights(uint8_t* weights, F x) {
    const __m256bh rounded = _mm512_cvtneps_pbh(x);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights), reinterpret_cast<__m256i>(rounded));
    return widen(rounded);
  }
  static inline Pairs first(Pairs x) { return _mm512_maskz_mov_epi16(0x55555555u, x); }
  static inline Pairs second(Pairs x) { return _mm512_maskz_mov_epi16(0xaaaaaaaau, x); }
};

/* The two bytes of the bf16 that each e4m3 magnitude stands for over kF8Unit. */
struct F8Table {
  alignas(64) uint8_t lower[128], upper[128];

  constexpr F8Table() : lower(), upper() {
    for (int code = 0; code < 128; code++) {
      const auto magnitude = static_cast<uint32_t>(code);
      const uint32_t normal = (magnitude << 4) + ((127u - 7u - 8u) << 7);
      const uint32_t subnormal = __builtin_bit_cast(uint32_t, static_cast<float>(code) * 0x1p-17f) >> 16;
      const uint32_t bits = code == 127 ? 0x7fc0u : code < 8 ? subnormal : normal;
      lower[code] = static_cast<uint8_t>(bits);
      upper[code] = static_cast<uint8_t>(bits >> 8);
    }
  }
};
constexpr F8Table kF8Table;

/* e4m3 codes to bf16, by looking their magnitudes up; count is a multiple of 64. */
static inline void decode_f8(const uint8_t* codes, uint8_t* output, int64_t count) {
  const __m512i lower[] = {_mm512_load_si512(kF8Table.lower), _mm512_load_si512(kF8Table.lower + 64)};
  const __m512i upper[] = {_mm512_load_si512(kF8Table.upper), _mm512_load_si512(kF8Table.upper + 64)};
  /* Unpacking works within 128 bits: the halves that belong together must lie in the same. */
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  for (int64_t i = 0; i < count; i += 64) {
    const __m512i x = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(codes + i));
    const __m512i low = _mm512_permutex2var_epi8(lower[0], x, lower[1]);
    /* upper | (x & sign) */
    const __m512i high = _mm512_ternarylogic_epi32(_mm512_permutex2var_epi8(upper[0], x, upper[1]), x, sign, 0xf8);
    _mm512_storeu_si512(output + 2 * i, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(output + 2 * i + 64, _mm512_unpackhi_epi8(low, high));
  }
}

static void prepare_queries(const float* const* queries, int32_t num_rows, int32_t head_dim, uint8_t* output) {
  store_queries<Bf16Products>(queries, num_rows, head_dim, output);
}

static void attend(const AttendArgs& a) {
  if (a.dtype == KvDType::kBf16) {
    return attend_with<Bf16Products>(
        a, [&](const uint8_t* cache, int32_t first, int32_t count, const uint8_t** blocks) {
          for (int32_t b = 0; b < count; b++) blocks[b] = cache + a.blocks[first + b];
        });
  }
  attend_with<Bf16Products>(a, [&](const uint8_t* cache, int32_t first, int32_t count, const uint8_t** blocks) {
    const int64_t elements = int64_t{kKvBlock} * a.head_dim;
    for (int32_t b = 0; b < count; b++) {
      uint8_t* block = a.decoded + b * 2 * elements;
      decode_f8(cache + a.blocks[first + b], block, elements);
      blocks[b] = block;
    }
  });
}

}  // namespace moe::MOE_ISA
