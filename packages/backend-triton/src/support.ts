import type { ActivationSupport, Arithmetic, DeviceSupport, ExpertSupportRule, LinearSupportRule, WeightLayout } from '@moe-server/core';

/** What both backends of this package run. */
export type TritonScheme =
  'nvfp4.w4a4' | 'nvfp4.w4a16' | 'mxfp4.w4a16' | 'fp8.tensor.static' | 'fp8.tensor.dynamic' | 'fp8.channel' | 'fp8.block128' | 'bf16';

/** Everything as the checkpoint has it, gate before up, scales row by row: pointer arithmetic with masks needs no other order. */
export const layout: WeightLayout = { id: 'triton/row-major@1', rows: 'stacked', blockScales: 'row-major' };

/** What is said of several schemes at once. */
interface Variant {
  readonly id: string;
  readonly schemes: readonly TritonScheme[];
  readonly inputs: 'as-scheme' | 'bf16';
  readonly device: DeviceSupport;
  readonly batchInvariant?: true;
}

/** Triton's own floor is SM 8.0 for bf16 products. FP4 and e4m3 weights are taken apart with integer instructions there. */
const sm80: DeviceSupport = { type: 'cuda', sm: { min: 80 } };
/** Triton has the type fp8e4nv, e4m3 as an operand of a product, from SM 8.9 (vLLM's batched_triton says the same: SM89+). */
const sm89: DeviceSupport = { type: 'cuda', sm: { min: 89 } };

/** The four pairs of weight and input scales that vLLM's Triton kernel has (its capability table, August 2026). */
const fp8: readonly TritonScheme[] = ['fp8.tensor.static', 'fp8.tensor.dynamic', 'fp8.channel', 'fp8.block128'];

// Batch invariance: vLLM declares it for its Triton kernels of BF16 and FP8, and for none of MXFP4 (#57821).
const variants: readonly Variant[] = [
  { id: 'bf16', schemes: ['bf16'], inputs: 'bf16', device: sm80, batchInvariant: true },
  { id: 'fp8-same', schemes: fp8, inputs: 'as-scheme', device: sm89, batchInvariant: true },
  { id: 'fp8-wider', schemes: fp8, inputs: 'bf16', device: sm80, batchInvariant: true },
  { id: 'nvfp4-wider', schemes: ['nvfp4.w4a4'], inputs: 'bf16', device: sm80 },
  { id: 'nvfp4-w4a16', schemes: ['nvfp4.w4a16'], inputs: 'bf16', device: sm80 },
  { id: 'mxfp4', schemes: ['mxfp4.w4a16'], inputs: 'bf16', device: sm80 },
];

/**
 * Every weight takes part exactly: e4m3, and e2m1 times its block's scale, are exact in bf16, and scales of matrices, rows and 128-blocks are applied to
 * sums, which are float32.
 */
function arithmeticOf({ inputs }: Variant): Arithmetic {
  return {
    input: inputs === 'bf16' ? { type: 'float', dtype: 'bf16' } : { type: 'as-scheme' },
    weights: 'exact',
    accumulator: 'f32',
    intermediate: 'bf16',
    output: 'bf16',
  };
}

const activations: readonly ActivationSupport[] = [
  { type: 'silu' },
  // The clamp of gpt-oss, its parameters run-time values. A limit below zero would turn the clamp of `up` around.
  { type: 'swiglu', alpha: {}, limit: { min: 0 } },
];

/** The alignment of tokens to tiles counts experts in one block of threads: padded to warps of 32 they must stay below 1024 (vLLM's moe_align_block_size). */
const maxNumExperts = 1024 - 32;

/** Masks at the edges take any size; what a format asks of columns is the core's to check. */
const anySize = { multipleOf: 1 } as const;

function commonOf(variant: Variant) {
  const { id, schemes, device, batchInvariant } = variant;
  return {
    id,
    schemes,
    device,
    tokens: { min: 1 },
    arithmetic: arithmeticOf(variant),
    layout: layout.id,
    bias: true,
    ...(batchInvariant === undefined ? {} : { batchInvariant }),
  };
}

/** Rules of the experts. */
export const expertRules: readonly ExpertSupportRule<TritonScheme>[] = variants.map((variant) => ({
  ...commonOf(variant),
  activations,
  sizes: { hiddenSize: anySize, moeIntermediateSize: anySize },
  numExperts: { min: 1, max: maxNumExperts },
  topK: { min: 1 },
  // Slices are experts of another size, experts elsewhere are slots of -1.
  parallel: ['tp', 'ep'],
}));

/** Rules of the linears. */
export const linearRules: readonly LinearSupportRule<TritonScheme>[] = variants.map((variant) => ({
  ...commonOf(variant),
  sizes: { inFeatures: anySize, outFeatures: anySize },
  parallel: ['tp'],
}));
