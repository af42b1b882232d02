import type { ExpertMatrices, ExpertsArgs, ExpertWeights, LinearArgs, LinearWeights } from '../backend.js';
import { singleRank } from '../layer-spec.js';
import type { Activation, ExpertGroupSpec, LinearSpec } from '../layer-spec.js';
import type { SchemeKey, SchemeRegistry } from '../quant/quant-scheme.js';
import type { Random } from '../random.js';
import { randomMatrix } from './random-weights.js';
import type { RandomMatrixOptions } from './random-weights.js';

/** Makes random weights of a scheme; {@link randomMatrix} for those of the core. */
export type MatrixFactory = <S extends SchemeKey>(
  scheme: S,
  rows: number,
  columns: number,
  random: Random,
  options: RandomMatrixOptions,
) => SchemeRegistry[S];

/** What a random expert group can vary in. */
export interface ExpertGroupShape {
  readonly w13: SchemeKey;
  /** The scheme of `w13` when left out. */
  readonly w2?: SchemeKey;
  readonly hiddenSize: number;
  readonly moeIntermediateSize: number;
  /** Experts of the group. */
  readonly numExperts: number;
  readonly topK: number;
  /** Default silu. */
  readonly activation?: Activation;
  readonly hasBias?: boolean;
  /** Other experts of the layer stand between those of the group, so that slots and global ids differ. */
  readonly isSubset?: boolean;
}

/** The spec that a checkpoint with such a layer would give. */
export function expertGroup(shape: ExpertGroupShape): ExpertGroupSpec {
  const { numExperts, isSubset = false } = shape;
  return {
    kind: 'moe',
    name: `model.layers.1.mlp.experts${isSubset ? `#${shape.w13}` : ''}`,
    role: 'target',
    layerIndex: 1,
    schemes: { w13: shape.w13, w2: shape.w2 ?? shape.w13 },
    hiddenSize: shape.hiddenSize,
    moeIntermediateSize: shape.moeIntermediateSize,
    numExperts: isSubset ? 2 * numExperts + 1 : numExperts,
    experts: Array.from({ length: numExperts }, (_, slot) => (isSubset ? 2 * slot + 1 : slot)),
    topK: shape.topK,
    activation: shape.activation ?? { type: 'silu' },
    hasBias: shape.hasBias ?? false,
    routing: {
      score: 'softmax',
      order: 'score-first',
      renormalize: true,
      numGroups: 1,
      topkGroups: 1,
      hasCorrectionBias: false,
      hasRouterBias: false,
      scalingFactor: 1,
    },
    parallel: singleRank,
  };
}

/**
 * Weights for a group, expert by expert. Every expert has its own scales; gate and up share the input scale, because they
 * read the same input (checkpoint exporters write it so).
 */
export function randomExperts(group: ExpertGroupSpec, random: Random, makeMatrix: MatrixFactory = randomMatrix): ExpertMatrices[] {
  const { hiddenSize, moeIntermediateSize, schemes } = group;
  const vector = (length: number, part: Random): Float32Array => Float32Array.from({ length }, () => 0.5 * part.normal());
  return group.experts.map((_, slot) => {
    const part = random.fork(slot);
    // Calibrated a little below the largest values of randomHiddenStates, so that saturation is part of every case.
    const gate = makeMatrix(schemes.w13, moeIntermediateSize, hiddenSize, part, { inputAmax: 8 });
    const up = makeMatrix(schemes.w13, moeIntermediateSize, hiddenSize, part, { inputAmax: 8 });
    const down = makeMatrix(schemes.w2, hiddenSize, moeIntermediateSize, part, { inputAmax: 4 });
    return {
      gate,
      up: 'inputScale' in gate ? { ...up, inputScale: gate.inputScale } : up,
      down,
      ...(group.hasBias
        ? { bias: { gate: vector(moeIntermediateSize, part), up: vector(moeIntermediateSize, part), down: vector(hiddenSize, part) } }
        : {}),
    };
  });
}

/** Weights in memory behind the interface of weights on disk. Every read gives fresh copies, as reading a file does. */
export function expertWeightsOf(experts: readonly ExpertMatrices[]): ExpertWeights {
  return {
    numExperts: experts.length,
    expert: (slot) => {
      const found = experts[slot];
      return found === undefined
        ? Promise.reject(new RangeError(`There is no expert in slot ${String(slot)}: the group has ${String(experts.length)}.`))
        : Promise.resolve(copyOf(found));
    },
  };
}

/** One linear; several sizes make a fused one. */
export function linearSpec(scheme: SchemeKey, inFeatures: number, outFeatures: readonly number[], hasBias = false): LinearSpec {
  const names = ['q_proj', 'k_proj', 'v_proj'];
  return {
    kind: 'linear',
    name: outFeatures.length > 1 ? 'model.layers.1.self_attn.qkv_proj' : 'model.layers.1.self_attn.o_proj',
    role: 'target',
    layerIndex: 1,
    scheme,
    modules: outFeatures.map((size, i) => ({
      name: `model.layers.1.self_attn.${outFeatures.length > 1 ? (names[i] ?? `p${String(i)}`) : 'o_proj'}`,
      outFeatures: size,
    })),
    inFeatures,
    outFeatures: outFeatures.reduce((sum, size) => sum + size, 0),
    hasBias,
    parallel: singleRank,
  };
}

export interface LinearModule {
  readonly matrix: SchemeRegistry[SchemeKey];
  readonly bias: Float32Array | undefined;
}

/** Weights for every module of a linear, each with scales of its own, the input scale included. */
export function randomModules(linear: LinearSpec, random: Random, makeMatrix: MatrixFactory = randomMatrix): LinearModule[] {
  return linear.modules.map(({ outFeatures }, index) => {
    const part = random.fork(index);
    const matrix = makeMatrix(linear.scheme, outFeatures, linear.inFeatures, part, { inputAmax: 6 + 2 * index });
    return { matrix, bias: linear.hasBias ? Float32Array.from({ length: outFeatures }, () => 0.5 * part.normal()) : undefined };
  });
}

/** As {@link expertWeightsOf}. */
export function linearWeightsOf(modules: readonly LinearModule[]): LinearWeights {
  return {
    numModules: modules.length,
    module: (index) => {
      const found = modules[index];
      return found === undefined
        ? Promise.reject(new RangeError(`There is no module ${String(index)}: the linear has ${String(modules.length)}.`))
        : Promise.resolve(copyOf(found));
    },
  };
}

/** Which experts the tokens of a call choose. */
export type RoutingPattern =
  /** Every token: topK different slots, evenly spread. */
  | 'spread'
  /** Only the first topK slots are ever chosen; the others stay empty. */
  | 'few'
  /** Every token's first choice is slot 0 and the rest is not in the group. */
  | 'one-expert'
  /** About half of the choices belong to other groups (−1), and every third token has none of this group. */
  | 'partly-foreign'
  /** No choice belongs to the group. */
  | 'all-foreign'
  /** Every choice of a token is the same expert. */
  | 'duplicates';

export type RandomExpertsCall = Omit<ExpertsArgs, 'output' | 'accumulate'>;

/** Hidden states and routing for one call. */
export function randomExpertsCall(
  group: Pick<ExpertGroupSpec, 'topK' | 'hiddenSize' | 'experts'>,
  numTokens: number,
  pattern: RoutingPattern,
  random: Random,
): RandomExpertsCall {
  const { topK } = group;
  const numSlots = group.experts.length;
  const topkSlots = new Int32Array(numTokens * topK).fill(-1);
  const topkWeights = new Float32Array(numTokens * topK);
  for (let token = 0; token < numTokens; token++) {
    const slots = random.shuffle(Array.from({ length: Math.max(numSlots, topK) }, (_, i) => (i < numSlots ? i : -1)));
    const few = random.shuffle(Array.from({ length: topK }, (_, i) => (i < numSlots ? i : -1)));
    for (let k = 0; k < topK; k++) {
      const at = token * topK + k;
      topkSlots[at] = chooseSlot(pattern, { token, k, slots, few, random });
      topkWeights[at] = (0.25 + random.uniform()) / topK;
    }
  }
  return { numTokens, topK, hiddenStates: randomRows(numTokens, group.hiddenSize, random), topkSlots, topkWeights };
}

interface Choice {
  readonly token: number;
  readonly k: number;
  readonly slots: readonly number[];
  readonly few: readonly number[];
  readonly random: Random;
}

function chooseSlot(pattern: RoutingPattern, { token, k, slots, few, random }: Choice): number {
  switch (pattern) {
    case 'spread':
      return slots[k] ?? -1;
    case 'few':
      return few[k] ?? -1;
    case 'one-expert':
      return k === 0 ? 0 : -1;
    case 'partly-foreign':
      return token % 3 === 2 || random.uniform() < 0.5 ? -1 : (slots[k] ?? -1);
    case 'all-foreign':
      return -1;
    case 'duplicates':
      return slots[0] ?? 0;
  }
}

/** Inputs for one call of a linear. */
export function randomLinearCall(linear: LinearSpec, numTokens: number, random: Random): Omit<LinearArgs, 'output' | 'accumulate'> {
  return { numTokens, input: randomRows(numTokens, linear.inFeatures, random) };
}

/**
 * Rows as a model's hidden states look: about normal, some columns several times larger in every row. Full float32 values, so that
 * a kernel that rounds its input shows it.
 */
export function randomRows(numRows: number, width: number, random: Random): Float32Array {
  const rows = new Float32Array(numRows * width);
  const gains = Float32Array.from({ length: width }, () => (random.int(24) === 0 ? 3 : 1));
  for (let i = 0; i < rows.length; i++) rows[i] = random.normal() * (gains[i % width] ?? 1);
  return rows;
}

/** Deep copy that keeps symbols: the scheme's brand is one. */
function copyOf<T>(value: T): T {
  if (ArrayBuffer.isView(value)) return (value as unknown as Uint8Array).slice() as T;
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Reflect.ownKeys(value).map((key) => [key, copyOf((value as Record<PropertyKey, unknown>)[key])])) as T;
}
