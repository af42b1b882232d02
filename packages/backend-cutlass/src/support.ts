import type { ActivationSupport, Arithmetic, DeviceSupport, ExpertSupportRule, LinearSupportRule, WeightLayout } from '@moe-server/core';

/** What both backends of this package run. */
export type CutlassScheme =
  'nvfp4.w4a4' | 'nvfp4.w4a16' | 'mxfp4.w4a16' | 'fp8.tensor.static' | 'fp8.tensor.dynamic' | 'fp8.channel' | 'fp8.block128' | 'bf16';

/**
 * Rows as the checkpoint has them, gate before up, in a stack per expert: what a grouped GEMM takes. Scales of FP4 blocks lie as block-scaled
 * instructions want them; weight-only kernels read the same bytes, so that one copy serves both.
 */
export const layout: WeightLayout = { id: 'cutlass/grouped@1', rows: 'stacked', blockScales: 'swizzled' };

/** What is said of several schemes at once. */
interface Variant {
  readonly id: string;
  readonly schemes: readonly CutlassScheme[];
  readonly inputs: 'as-scheme' | 'bf16';
  readonly device: DeviceSupport;
  /** Columns of a matrix must be a multiple of this. */
  readonly columns: number;
  readonly batchInvariant?: true;
}

/** mma.sync with bf16 operands and cp.async exist from SM 8.0 (PTX ISA, "mma"); TensorRT-LLM's CUTLASS backend begins there too (its MoE developer guide). */
const sm80: DeviceSupport = { type: 'cuda', sm: { min: 80 } };
/** Matrix instructions with e4m3 operands exist from SM 8.9 (PTX ISA, "mma"; TensorRT-LLM guide: FP8 89+). */
const sm89: DeviceSupport = { type: 'cuda', sm: { min: 89 } };
/**
 * FP4 operands: architecture-specific instructions, not forward compatible, so a list (TensorRT-LLM guide, NVFP4: 100/103/120/121). A family test once lost
 * SM 12.0 for weeks (vLLM #33417), and a test of the CUDA version alone ended in illegal instructions (vLLM #38423).
 */
const blockScaledFp4: DeviceSupport = { type: 'cuda', sm: [100, 103, 120, 121] };

/** Bulk copies and 16-byte loads want rows that begin at multiples of 16 bytes (CUDA driver API, cuTensorMapEncodeTiled, globalStrides). */
const rowAlignmentBytes = 16;
const columnsOf = { bits4: (8 * rowAlignmentBytes) / 4, bits8: rowAlignmentBytes, bits16: rowAlignmentBytes / 2 };

const variants: readonly Variant[] = [
  // 64 columns: four scales of 16, the width of an atom of scales and the K of the instruction. vLLM's NVFP4 CUTLASS declares batch invariance (its
  // cutlass_moe classes, August 2026).
  { id: 'nvfp4-same', schemes: ['nvfp4.w4a4'], inputs: 'as-scheme', device: blockScaledFp4, columns: 64, batchInvariant: true },
  { id: 'nvfp4-wider', schemes: ['nvfp4.w4a4'], inputs: 'bf16', device: sm80, columns: columnsOf.bits4 },
  { id: 'nvfp4-w4a16', schemes: ['nvfp4.w4a16'], inputs: 'bf16', device: sm80, columns: columnsOf.bits4 },
  { id: 'mxfp4', schemes: ['mxfp4.w4a16'], inputs: 'bf16', device: sm80, columns: columnsOf.bits4 },
  {
    id: 'fp8-same',
    schemes: ['fp8.tensor.static', 'fp8.tensor.dynamic', 'fp8.channel'],
    inputs: 'as-scheme',
    device: sm89,
    columns: columnsOf.bits8,
  },
  // Input groups of 128 whole, as all block-scaled kernels of others want them (DeepGEMM, HPC and b12x in vLLM, August 2026). The scales are
  // applied to partial sums outside the instruction, so this needs no more than e4m3 operands: SM 8.9, where TensorRT-LLM's stops (#17570).
  { id: 'fp8-block128-same', schemes: ['fp8.block128'], inputs: 'as-scheme', device: sm89, columns: 128 },
  {
    id: 'fp8-wider',
    schemes: ['fp8.tensor.static', 'fp8.tensor.dynamic', 'fp8.channel', 'fp8.block128'],
    inputs: 'bf16',
    device: sm80,
    columns: columnsOf.bits8,
  },
  { id: 'bf16', schemes: ['bf16'], inputs: 'bf16', device: sm80, columns: columnsOf.bits16 },
];

/**
 * Every weight takes part exactly: e4m3, and e2m1 times its block's scale, are exact in bf16, and scales of matrices, rows and 128-blocks are applied to sums.
 * Sums are float32; on SM 9.0, whose FP8 instructions keep fewer bits, partial sums of 128 columns are added up in registers (DeepSeek-V3 report, 3.3.2).
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
  // The clamp of gpt-oss, with its parameters as run-time values: kernels that bake them in, or drop them, compute other models wrongly (SGLang
  // #39920, vLLM #49747). A limit below zero would turn the clamp of `up` around.
  { type: 'swiglu', alpha: {}, limit: { min: 0 } },
];

function commonOf(variant: Variant) {
  const { id, schemes, device, batchInvariant } = variant;
  return {
    id,
    schemes,
    device,
    // The grouped GEMM's tile schedule is of any length. FlashInfer's FP8 CUTLASS kernel ends at 16k tokens on SM 9.0 (vLLM #34249); ours has no such table.
    tokens: { min: 1 },
    arithmetic: arithmeticOf(variant),
    layout: layout.id,
    bias: true,
    ...(batchInvariant === undefined ? {} : { batchInvariant }),
  };
}

/** Rules of the experts. */
export const expertRules: readonly ExpertSupportRule<CutlassScheme>[] = variants.map((variant) => ({
  ...commonOf(variant),
  activations,
  // Both are the columns of one projection.
  sizes: { hiddenSize: { multipleOf: variant.columns }, moeIntermediateSize: { multipleOf: variant.columns } },
  numExperts: { min: 1 },
  topK: { min: 1 },
  // Experts elsewhere are slots of -1, which the sort drops (vLLM's own NVFP4 kernel wants ep_size 1 and fails in forward: #32622).
  parallel: ['tp', 'ep'],
}));

/** Rules of the linears. */
export const linearRules: readonly LinearSupportRule<CutlassScheme>[] = variants.map((variant) => ({
  ...commonOf(variant),
  // Rows of the bf16 output begin at multiples of 16 bytes too.
  sizes: { inFeatures: { multipleOf: variant.columns }, outFeatures: { multipleOf: columnsOf.bits16 } },
  parallel: ['tp'],
}));
