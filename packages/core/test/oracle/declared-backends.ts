/** Backends and layers that tests of the oracle declare: rules without kernels worth the name. */
import type { ExpertSupportRule, Kernel, LinearBackend, LinearSupportRule, MoeBackend, PackedWeights } from '../../src/backend.js';
import type { CudaDeviceInfo } from '../../src/device-info.js';
import { singleRank, type ExpertGroupSpec, type LinearSpec, type RoutingMethod } from '../../src/layer-spec.js';
import { eraseLinearBackend, eraseMoeBackend, type ErasedLinearBackend, type ErasedMoeBackend } from '../../src/oracle/erased-backend.js';
import { validateBackend } from '../../src/oracle/validate-backend.js';
import { SCHEME, schemeInfo, type SchemeKey } from '../../src/quant/quant-scheme.js';

export const gb10: CudaDeviceInfo = { type: 'cuda', name: 'NVIDIA GB10', sm: 121, memoryBytes: undefined };

export const routing: RoutingMethod = {
  score: 'softmax',
  order: 'score-first',
  renormalize: true,
  numGroups: 1,
  topkGroups: 1,
  hasCorrectionBias: false,
  hasRouterBias: false,
  scalingFactor: 1,
};

export function expertGroup(layerIndex: number, scheme: SchemeKey, changes: Partial<ExpertGroupSpec> = {}): ExpertGroupSpec {
  const numExperts = changes.numExperts ?? 8;
  return {
    kind: 'moe',
    name: `model.layers.${layerIndex}.mlp.experts`,
    role: 'target',
    layerIndex,
    schemes: { w13: scheme, w2: scheme },
    hiddenSize: 2048,
    moeIntermediateSize: 768,
    numExperts,
    experts: Array.from({ length: numExperts }, (_, expert) => expert),
    topK: 2,
    activation: { type: 'silu' },
    hasBias: false,
    routing,
    parallel: singleRank,
    ...changes,
  };
}

export function linear(layerIndex: number, scheme: SchemeKey, changes: Partial<LinearSpec> = {}): LinearSpec {
  const name = `model.layers.${layerIndex}.self_attn.o_proj`;
  return {
    kind: 'linear',
    name,
    role: 'target',
    layerIndex,
    scheme,
    modules: [{ name, outFeatures: 2048 }],
    inFeatures: 4096,
    outFeatures: 2048,
    hasBias: false,
    parallel: singleRank,
    ...changes,
  };
}

/** Stands for a layout of the backend's own until a backend has the rule. */
const ownLayout = 'own/rows@1';

/** A rule that covers any size of the schemes on SM 8.0 and newer, inputs of 16 bits, unless changed. */
export function expertRule<S extends SchemeKey>(
  id: string,
  schemes: readonly S[],
  changes: Partial<ExpertSupportRule<S>> = {},
): ExpertSupportRule<S> {
  return {
    id,
    schemes,
    device: { type: 'cuda', sm: { min: 80 } },
    activations: [{ type: 'silu' }],
    sizes: { hiddenSize: { multipleOf: 1 }, moeIntermediateSize: { multipleOf: 1 } },
    numExperts: {},
    topK: {},
    tokens: {},
    arithmetic: { input: { type: 'float', dtype: 'bf16' }, weights: 'exact', accumulator: 'f32', intermediate: 'bf16', output: 'bf16' },
    layout: ownLayout,
    ...changes,
  };
}

export function linearRule<S extends SchemeKey>(
  id: string,
  schemes: readonly S[],
  changes: Partial<LinearSupportRule<S>> = {},
): LinearSupportRule<S> {
  return {
    id,
    schemes,
    device: { type: 'cuda', sm: { min: 80 } },
    sizes: { inFeatures: { multipleOf: 1 }, outFeatures: { multipleOf: 1 } },
    tokens: {},
    arithmetic: { input: { type: 'float', dtype: 'bf16' }, weights: 'exact', accumulator: 'f32', intermediate: 'f32', output: 'bf16' },
    layout: ownLayout,
    ...changes,
  };
}

export const asScheme = {
  input: { type: 'as-scheme' },
  weights: 'exact',
  accumulator: 'f32',
  intermediate: 'bf16',
  output: 'bf16',
} as const;

/** What a declared backend did, for tests of preparing. */
export interface Journal {
  readonly events: string[];
}

/** A backend whose kernels do nothing. It reads every expert when it packs. */
export function moeBackend<S extends SchemeKey>(
  name: string,
  priority: number,
  rules: readonly ExpertSupportRule<S>[],
  changes: Partial<MoeBackend<S>> = {},
  journal: Journal = { events: [] },
): MoeBackend<S> {
  return {
    kind: 'moe',
    name,
    rules: rules.map((rule) => (rule.layout === ownLayout ? { ...rule, layout: `${name}/rows@1` } : rule)),
    priority: () => priority,
    footprint: (group, rule) => {
      const bits = schemeInfo(rule.schemes[0] as string)?.bitsPerWeight ?? 16;
      const residentBytes = Math.ceil((3 * group.experts.length * group.hiddenSize * group.moeIntermediateSize * bits) / 8);
      return {
        residentBytes,
        preparePeakBytes: residentBytes / group.experts.length,
        workspaceBytes: (numTokens) => numTokens * group.hiddenSize * 4,
      };
    },
    pack: async (group, rule, weights) => {
      for (let slot = 0; slot < weights.numExperts; slot += 1) await weights.expert(slot);
      journal.events.push(`pack ${name}/${rule.id}`);
      return packed(rule.layout, [group.schemes.w13, group.schemes.w2], name, journal);
    },
    unpack: () => {
      throw new Error('declared only');
    },
    createKernel: (_group, rule, _packed, { maxNumTokens }) => {
      journal.events.push(`kernel ${name}/${rule.id} ${maxNumTokens}`);
      return Promise.resolve(kernel(`${name}/${rule.id}`, 'js-experts', journal));
    },
    ...changes,
  };
}

export function linearBackend<S extends SchemeKey>(
  name: string,
  priority: number,
  rules: readonly LinearSupportRule<S>[],
  changes: Partial<LinearBackend<S>> = {},
  journal: Journal = { events: [] },
): LinearBackend<S> {
  return {
    kind: 'linear',
    name,
    rules: rules.map((rule) => (rule.layout === ownLayout ? { ...rule, layout: `${name}/rows@1` } : rule)),
    priority: () => priority,
    footprint: (spec) => ({ residentBytes: spec.inFeatures * spec.outFeatures, preparePeakBytes: 0, workspaceBytes: () => 0 }),
    pack: async (spec, rule, weights) => {
      for (let index = 0; index < weights.numModules; index += 1) await weights.module(index);
      journal.events.push(`pack ${name}/${rule.id}`);
      return packed(rule.layout, [spec.scheme], name, journal);
    },
    unpack: () => {
      throw new Error('declared only');
    },
    createKernel: (_spec, rule) => Promise.resolve(kernel(`${name}/${rule.id}`, 'js-linear', journal)),
    ...changes,
  };
}

/** Validated and erased, as the registry has it. */
export function registered<S extends SchemeKey>(...backends: readonly MoeBackend<S>[]): ErasedMoeBackend[] {
  return backends.map((backend) => {
    validateBackend(backend, 'moe', 'test');
    return eraseMoeBackend(backend, 'test');
  });
}

export function registeredLinear<S extends SchemeKey>(...backends: readonly LinearBackend<S>[]): ErasedLinearBackend[] {
  return backends.map((backend) => {
    validateBackend(backend, 'linear', 'test');
    return eraseLinearBackend(backend, 'test');
  });
}

/** The three GPU families in outline: who runs which scheme where. */
export function gpuFamilies(): readonly ErasedMoeBackend[] {
  const b12x = moeBackend('b12x', 100, [
    expertRule('w4a4', ['nvfp4.w4a4'], {
      device: { type: 'cuda', sm: [120, 121] },
      layout: 'b12x/interleaved@1',
      arithmetic: asScheme,
      sizes: { hiddenSize: { multipleOf: 128 }, moeIntermediateSize: { multipleOf: 128 } },
    }),
    expertRule('w4a16', ['nvfp4.w4a4', 'nvfp4.w4a16'], { device: { type: 'cuda', sm: [120, 121] }, layout: 'b12x/interleaved@1' }),
  ]);
  const cutlass = moeBackend('cutlass', 50, [
    expertRule('fp8', ['fp8.tensor.static', 'fp8.channel', 'fp8.block128'], {
      device: { type: 'cuda', sm: { min: 89 } },
      layout: 'cutlass/fp8@1',
      arithmetic: asScheme,
    }),
    expertRule('nvfp4', ['nvfp4.w4a4'], { device: { type: 'cuda', sm: [100, 120, 121] }, layout: 'cutlass/nvfp4@1', arithmetic: asScheme }),
  ]);
  const triton = moeBackend('triton', 10, [
    expertRule('bf16', ['bf16'], { layout: 'triton/rows@1' }),
    expertRule('weight-only', ['fp8.block128', 'nvfp4.w4a4', 'nvfp4.w4a16'], { layout: 'triton/rows@1' }),
  ]);
  return [...registered(b12x), ...registered(cutlass), ...registered(triton)];
}

function packed(layout: string, schemes: readonly string[], name: string, { events }: Journal): PackedWeights {
  return {
    layout,
    [SCHEME]: [...new Set(schemes)],
    residentBytes: 1000,
    handle: undefined,
    dispose: () => events.push(`free pack of ${name}`),
  };
}

function kernel(name: string, type: 'js-experts' | 'js-linear', { events }: Journal): Kernel {
  return { entry: { type, run: () => undefined }, workspaceBytes: () => 0, dispose: () => events.push(`free kernel ${name}`) };
}
