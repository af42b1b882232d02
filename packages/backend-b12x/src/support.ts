import type { Arithmetic, ExpertSupportRule, WeightLayout } from '@moe-server/core';

/** What this package runs: NVFP4 and nothing else, by construction. */
export type B12xScheme = 'nvfp4.w4a4' | 'nvfp4.w4a16';

/**
 * Row 2i of w13 is row i of gate, row 2i + 1 row i of up: a thread's accumulators of the matrix instruction hold neighbouring columns, so gate and
 * up of the same place meet in one thread and the activation needs no exchange. Scales lie as the block-scaled instruction wants them. The kernels
 * with 16-bit inputs read the same bytes, so that a layer needs no second copy to change its numerics (vLLM #54617 is about needing one).
 */
export const layout: WeightLayout = { id: 'b12x/interleaved@1', rows: 'interleaved', blockScales: 'swizzled' };

const inBf16 = { weights: 'exact', accumulator: 'f32', intermediate: 'bf16', output: 'bf16' } as const;
/** Products of e2m1 codes are scaled by both block scales inside the instruction and summed in float32. */
const quantizedInputs: Arithmetic = { ...inBf16, input: { type: 'as-scheme' } };
/** e2m1 times e4m3 has at most six bits of fraction, so a decoded weight is exact in bf16; the global scale comes after the sum. */
const bf16Inputs: Arithmetic = { ...inBf16, input: { type: 'float', dtype: 'bf16' } };

const common = {
  // The block-scaled FP4 instructions of this kind are in 12.0 and 12.1 only, and their code is not forward compatible. FlashInfer's b12x and
  // TensorRT-LLM's CuteDSL (B12x) name the same two (FlashInfer b12x_moe; TensorRT-LLM MoE developer guide, capability matrix, August 2026).
  device: { type: 'cuda', sm: [120, 121] },
  // Any number: buffers are sized by what the engine announces, where vLLM's met calls larger than it had planned (vLLM #47982). That
  // TensorRT-LLM changes to CUTLASS at 64 tokens (#13773) is a matter of speed, which measuring decides.
  tokens: { min: 1 },
  layout: layout.id,
  // Gated SiLU alone: the family cannot clamp (vLLM's list for swiglu_limit leaves it out, August 2026), and non-gated forms are not described by the contract.
  activations: [{ type: 'silu' }],
  // Whole atoms of 128 rows by four scales (64 columns): hidden_size is the rows of w2 and the columns of w13, and 2 * moe_intermediate_size the
  // rows of w13.
  sizes: { hiddenSize: { multipleOf: 128 }, moeIntermediateSize: { multipleOf: 64 } },
  numExperts: { min: 1 },
  topK: { min: 1 },
  // Slices of experts are experts of another size. Expert parallel and biases are refused by FlashInfer's b12x and by vLLM's (#52018).
  parallel: ['tp'],
} as const satisfies Partial<ExpertSupportRule>;

/**
 * Rules of the experts. Both input widths: vLLM serves NVFP4 with 16-bit inputs through this family since #43332, and users of such checkpoints on SM 12.x
 * ask for it (#31085, #54666).
 */
export const expertRules: readonly ExpertSupportRule<B12xScheme>[] = [
  { ...common, id: 'nvfp4-same', schemes: ['nvfp4.w4a4'], arithmetic: quantizedInputs },
  { ...common, id: 'nvfp4-wider', schemes: ['nvfp4.w4a4'], arithmetic: bf16Inputs },
  { ...common, id: 'nvfp4-w4a16', schemes: ['nvfp4.w4a16'], arithmetic: bf16Inputs },
];
