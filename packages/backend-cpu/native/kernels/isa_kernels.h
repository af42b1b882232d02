// The operators that exist once per instruction set. Everything above this table is compiled for baseline processors.
#ifndef MOE_BACKEND_CPU_KERNELS_ISA_KERNELS_H_
#define MOE_BACKEND_CPU_KERNELS_ISA_KERNELS_H_

#include <cstdint>

#include "../prepared_row.h"
#include "../weight_format.h"

namespace moe {

enum class Isa : uint8_t { kPortable, kAvx2, kAvx512, kNeon };

inline constexpr Isa kIsas[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kNeon};

// Most tokens that one call of a tile function takes.
inline constexpr int kMaxTileTokens = 12;

struct TileArgs {
  const uint8_t* tile;
  // kFp8Block128: factors of the tile's row block, [ceil(columns/128)].
  const float* block_scales;
  const RowLayout* row;
  // Columns of the tile, padded.
  int64_t columns;
};

// sums[m, r] = sum over k of input row m times weight row r, without the row's factor and `sum_factor`.
//
// The order of the additions depends on the number of columns only: every chunk of 16 columns gives one partial sum,
// partial sums are added in ascending order. Neither the number of tokens nor their place in the call changes a bit.
using TileFn = void (*)(const TileArgs& args, const uint8_t* const* rows, float* sums);

enum class ActivationKind : uint8_t { kSilu, kSwiglu };

struct Activation {
  ActivationKind kind = ActivationKind::kSilu;
  float alpha = 0;
  float limit = 0;
};

// What turns the 16 sums of a tile into outputs: sum * factor[r] * (scale of the token) + bias[r].
struct TileEpilogue {
  const float* factors;
  // May be null.
  const float* bias;
};

struct GateUpArgs {
  TileEpilogue gate;
  TileEpilogue up;
  Activation activation;
  // Per-token scale at `input->scales` of each input row when input->kind is kFp8Token.
  const RowLayout* input;
  const RowLayout* intermediate;
  // kNvfp4, kFp8Static: the static scale of the down projection's input.
  float intermediate_scale;
};

struct IsaKernels {
  Isa isa;
  const char* name;
  // Type of the values of a prepared row.
  Element (*element)(WeightFormat format, InputKind kind);
  // Null when the pair makes no sense; num_tokens in [1, kMaxTileTokens].
  TileFn (*tile)(WeightFormat format, InputKind kind, int num_tokens);
  // Exact power of two that the sums of this tile function lack.
  float (*sum_factor)(WeightFormat format, InputKind kind);
  // Converts or quantizes one f32 row into a record. `scale`: the static input scale.
  void (*prepare_row)(const float* x, const RowLayout& row, float scale, uint8_t* record);
  // Quantizes a record that holds values of dynamic kinds (kFp8Token, kFp8Group128) not quantized yet, in place.
  void (*quantize_record)(const RowLayout& row, uint8_t* record);
  // h = activation(gate, up) for the 16 columns `tile` * 16 ... of each intermediate record; see row_operators.inl.
  void (*gate_up)(const GateUpArgs& args, int num_tokens, const uint8_t* const* inputs, const float* gate_sums,
                  const float* up_sums, int64_t tile, uint8_t* const* records);
  // outputs[m][0..15] = epilogue(sums) * weights[m]; `inputs` as above.
  void (*finish)(const TileEpilogue& epilogue, const RowLayout& input, int num_tokens, const uint8_t* const* inputs,
                 const float* sums, const float* weights, float* const* outputs);
};

const IsaKernels& portable_kernels();
// Only on x86-64; call them only when the processor has the features. With AVX-VNNI whole numbers multiply faster, to
// the same bits.
const IsaKernels& avx2_kernels(bool has_vnni);
const IsaKernels& avx512_kernels();

// How a 64-bit ARM processor multiplies whole numbers: by instructions that all have, by those of FEAT_DotProd, or by
// those of FEAT_DotProd and FEAT_I8MM.
enum class NeonDot : uint8_t { kWidening, kDotprod, kI8mm };

// Only on 64-bit ARM. All tables compute the same bits.
const IsaKernels& neon_kernels(NeonDot dot);

}  // namespace moe

#endif  // MOE_BACKEND_CPU_KERNELS_ISA_KERNELS_H_
