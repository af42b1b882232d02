/* Attention that multiplies in float32. Included once per instruction set after attention_kernels.h. */
namespace moe::MOE_ISA {

template <class Stored>
static void attend_stored(const AttendArgs& a) {
  attend_with<F32Products<Stored>>(
      a, [&](const uint8_t* cache, int32_t first, int32_t count, const uint8_t** blocks) {
        for (int32_t b = 0; b < count; b++) blocks[b] = cache + a.blocks[first + b];
      });
}

static void prepare_queries(const float* const* queries, int32_t num_rows, int32_t head_dim, uint8_t* output) {
  store_queries<F32Products<Bf16Pairs>>(queries, num_rows, head_dim, output);
}

static void attend(const AttendArgs& args) {
  if (args.dtype == KvDType::kBf16) {
    attend_stored<Bf16Pairs>(args);
  } else {
    attend_stored<F8Pairs>(args);
  }
}

}  // namespace moe::MOE_ISA
