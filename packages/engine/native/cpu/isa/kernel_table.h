/* The table of one instruction set. Included last, inside nothing; see row_kernels.h. */
#define MOE_QUOTE_(x) #x
#define MOE_QUOTE(x) MOE_QUOTE_(x)

namespace moe::MOE_ISA {

static const Kernels kKernels = {
    .name = MOE_QUOTE(MOE_ISA),
    .rms_norm = rms_norm,
    .rope = rope,
    .bf16_to_f32 = bf16_to_f32,
    .f32_to_bf16 = f32_to_bf16,
    .f32_to_f8 = f32_to_f8,
    .gated_activation = gated_activation,
    .matmul_f32 = matmul_f32,
    .softmax_terms = softmax_terms,
    .sigmoid = sigmoid,
    .prepare_queries = prepare_queries,
    .attend = attend,
    .merge_segment = merge_segment,
    .scale = scale_row,
    .chunk_max = chunk_max,
    .chunk_exp_sums = chunk_exp_sums,
    .exp_terms = exp_terms,
    .count_greater = count_greater,
};

}  // namespace moe::MOE_ISA
