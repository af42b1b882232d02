import type {
  ActivationSupport,
  Arithmetic,
  CpuFeature,
  ExpertSupportRule,
  LinearSpec,
  LinearSupportRule,
  Refusal,
} from '@moe-server/core';
import { deriveNumerics, schemeInfo } from '@moe-server/core';
import type { InstructionSet } from './addon.js';
import type { CpuScheme } from './formats.js';

/** The layout that every rule shares, so that kernels for different token counts or numerics can run on the same weights. */
export const layout = 'cpu/r16@1';

/**
 * Extensions that the kernels of an instruction set use, exactly those they are compiled with. No rule asks for what only makes the products of whole
 * numbers faster, to the same bits, where the processor has it: AVX-VNNI beside AVX2, `dotprod` and `i8mm` beside NEON.
 */
const features: Readonly<Record<InstructionSet, readonly CpuFeature[]>> = {
  avx512: ['avx2', 'fma', 'f16c', 'avx512f', 'avx512bw', 'avx512vl', 'avx512dq', 'avx512vbmi', 'avx512vnni', 'avx512bf16'],
  avx2: ['avx2', 'fma', 'f16c'],
  neon: ['neon'],
  portable: [],
};

const architectures = { avx512: ['x64'], avx2: ['x64'], neon: ['arm64'] } as const;

/** What is said of several schemes at once. */
interface Variant {
  readonly name: string;
  readonly schemes: readonly CpuScheme[];
  /** `scheme`: inputs are quantized as the scheme says. `float`: they take part as they are, or rounded to bf16 where a rule says so. */
  readonly inputs: 'scheme' | 'float';
}

const fp8: readonly CpuScheme[] = ['fp8.tensor.static', 'fp8.tensor.dynamic', 'fp8.channel', 'fp8.block128'];
const variants: readonly Variant[] = [
  { name: 'nvfp4-same', schemes: ['nvfp4.w4a4'], inputs: 'scheme' },
  { name: 'nvfp4-wider', schemes: ['nvfp4.w4a4'], inputs: 'float' },
  { name: 'nvfp4-w4a16', schemes: ['nvfp4.w4a16'], inputs: 'float' },
  { name: 'fp8-same', schemes: fp8, inputs: 'scheme' },
  { name: 'fp8-wider', schemes: fp8, inputs: 'float' },
  { name: 'mxfp4', schemes: ['mxfp4.w4a16'], inputs: 'float' },
  { name: 'bf16', schemes: ['bf16'], inputs: 'float' },
  { name: 'f16', schemes: ['f16'], inputs: 'float' },
];

const exactWeights = { weights: 'exact', accumulator: 'f32', output: 'f32' } as const;
/** Every sum is in float32; whole numbers within a group of 16 are exact. What is quantized between the projections was rounded to bf16 first. */
const asScheme: Arithmetic = { ...exactWeights, input: { type: 'as-scheme' }, intermediate: 'bf16' };
const withFloat32: Arithmetic = { ...exactWeights, input: { type: 'float', dtype: 'f32' }, intermediate: 'f32' };
const withBf16: Arithmetic = { ...exactWeights, input: { type: 'float', dtype: 'bf16' }, intermediate: 'bf16' };

/**
 * What the kernels of an instruction set do to numbers, by the beginning of the rule's id. AVX2, NEON and the portable path multiply float32. AVX-512
 * multiplies pairs of bf16 (vdpbf16ps) twice as fast, so float inputs may be rounded to bf16 there or stay as they are. IEEE half weights
 * have more fraction bits than bf16 and meet float32 everywhere.
 */
function arithmeticsOf({ name, inputs, schemes }: Variant, isa: InstructionSet): readonly (readonly [id: string, Arithmetic])[] {
  if (inputs === 'scheme') return [[name, asScheme]];
  if (isa !== 'avx512' || schemes.includes('f16')) return [[name, withFloat32]];
  return [
    [name, withBf16],
    [`${name}-f32`, withFloat32],
  ];
}

const instructionSets = new Map<string, InstructionSet>();

const commonRules = variants.flatMap((variant) =>
  (['avx512', 'avx2', 'neon', 'portable'] as const).flatMap((isa) =>
    arithmeticsOf(variant, isa).map(([name, arithmetic]) => {
      const id = `${name}-${isa}`;
      instructionSets.set(id, isa);
      return {
        id,
        schemes: variant.schemes,
        device: {
          type: 'cpu',
          ...(isa === 'portable' ? {} : { features: features[isa], architectures: architectures[isa] }),
        },
        tokens: { min: 1 },
        arithmetic,
        layout,
        // Whole experts or slices of them: the kernels see sizes per rank and slots of -1.
        parallel: ['tp', 'ep'],
        bias: true,
        // Every scale is per token or finer, and the order of every sum depends on the sizes only.
        batchInvariant: true,
      } as const satisfies Partial<ExpertSupportRule<CpuScheme>>;
    }),
  ),
);

const activations: readonly ActivationSupport[] = [
  { type: 'silu' },
  // A limit below zero would turn the clamp of `up` around.
  { type: 'swiglu', alpha: {}, limit: { min: 0 } },
];

/** Any size: tiles and groups that a matrix does not fill are padded with zeros. What a format itself asks of columns is the core's to check. */
const anySize = { multipleOf: 1 } as const;

/** Rules of the experts. */
export const expertRules: readonly ExpertSupportRule<CpuScheme>[] = commonRules.map((rule) => ({
  ...rule,
  activations,
  sizes: { hiddenSize: anySize, moeIntermediateSize: anySize },
  numExperts: { min: 1 },
  topK: { min: 1 },
}));

/** Rules of the linears. */
export const linearRules: readonly LinearSupportRule<CpuScheme>[] = commonRules.map((rule) => ({
  ...rule,
  sizes: { inFeatures: anySize, outFeatures: anySize },
}));

/** @throws {TypeError} for an id that is not one of ours. */
export function instructionSetOf(ruleId: string): InstructionSet {
  const known = instructionSets.get(ruleId);
  if (known === undefined) throw new TypeError(`${ruleId} is not a rule of backend-cpu.`);
  return known;
}

const instructionSetRank: Readonly<Record<InstructionSet, number>> = { avx512: 30, avx2: 20, neon: 20, portable: 10 };

/**
 * What `auto` takes where a scheme has both: *wider*, by speed and by the evaluation files together.
 *
 * Speed (experts of Qwen3-30B-A3B's shape, one Zen 4 core; `moe-server bench --kernels --shape 2048,768,32,8 --threads 1` measures it), same against
 * wider. NVFP4: 23.5 and 21.7 GB/s with one token, 234 and 167 Gop/s with 256, because whole numbers multiply twice as fast. FP8: 23.2 and 22.9 GB/s, 163 and 164
 * Gop/s: both run through the same bf16 products.
 *
 * Evaluation (test/e2e/pocket-dictionary.test.ts): rounding inputs costs 1.1 % of the total likelihood (32,327 nats weight-only, 32,682 with rounded
 * inputs, by the recorded reference); *wider* reproduces the weight-only total to 0.04 % and all 20 continuations.
 *
 * Decode gains nothing from *same*, so the better text goes first; `--numerics same` buys 1.15 times the prefill (docs/benchmarks/cpu.md).
 */
const preferred = 'wider';

/** The default order: the widest instruction set, then the preferred numerics, then the inputs that it multiplies faster. */
export function priorityOf(scheme: CpuScheme, rule: ExpertSupportRule<CpuScheme> | LinearSupportRule<CpuScheme>): number {
  const info = schemeInfo(scheme);
  const numerics = info === undefined ? 'approximate' : deriveNumerics(info, rule.arithmetic);
  return instructionSetRank[instructionSetOf(rule.id)] + (numerics === preferred ? 2 : 0) + (roundsInputs(rule) ? 1 : 0);
}

function roundsInputs({ arithmetic: { input } }: { readonly arithmetic: Arithmetic }): boolean {
  return input.type === 'float' && input.dtype === 'bf16';
}

/**
 * Keys and values that a quantized cache rounds want float32 inputs: a rounded input moves one key in 25 to another number of an FP8 cache, and
 * the logits by twenty times as much (test/e2e/fixtures.test.ts). A refusal and no matter of priority, because the faster kernel would win
 * every measurement.
 */
export function cacheRefusal({ cachedAs }: LinearSpec, rule: LinearSupportRule<CpuScheme>): Refusal | undefined {
  if (cachedAs === undefined || !roundsInputs(rule)) return undefined;
  return {
    dimension: 'backend',
    message: `it rounds inputs to bf16, which would move keys and values to other numbers of the ${cachedAs} KV cache.`,
    required: 'f32',
    actual: 'bf16',
  };
}
