import type { Arithmetic } from '../arithmetic.js';
import type {
  ExpertMatrices,
  ExpertSupportRule,
  Footprint,
  LinearBackend,
  LinearSupportRule,
  MoeBackend,
  PackedWeights,
} from '../backend.js';
import type { ExpertGroupSpec, LinearSpec } from '../layer-spec.js';
import { contractVersion, definePlugin } from '../plugin.js';
import type { Plugin } from '../plugin.js';
import { objectStorage } from './reference-storage.js';
import { decodeWeights } from '../quant/decode-weights.js';
import { SCHEME, schemeInfo, schemeKeys } from '../quant/quant-scheme.js';
import type { SchemeKey, SchemeRegistry } from '../quant/quant-scheme.js';
import type { LinearModule } from './layers.js';
import { referenceExpertsKernel, referenceLinearKernel } from '../reference/reference-kernels.js';
import type { MatrixDecoder } from '../reference/reference-layers.js';

/**
 * A backend in plain TypeScript: the reference itself, as kernels. Runs every scheme of the core on any CPU, in float64, slowly. Tests and the
 * TypeScript device run whole models with it where no native code is built; nothing loads it by default.
 *
 * Two rules: `wide` leaves inputs in float32, `same` quantizes them as the scheme says.
 */

const layout = 'reference/decoded@1';
const wide: Arithmetic = {
  input: { type: 'float', dtype: 'f32' },
  weights: 'exact',
  accumulator: 'f64',
  intermediate: 'f32',
  output: 'f32',
};
const same: Arithmetic = { ...wide, input: { type: 'as-scheme' } };

/** Keys at the time of the call whose weights the core can decode, or only those that quantize inputs. */
const decodable = schemeKeys() as SchemeKey[];
const withQuantizedInput = decodable.filter((key) => schemeInfo(key)?.input.type !== 'none');

const common = { device: { type: 'cpu' }, tokens: { min: 1 }, layout, bias: true, batchInvariant: true, parallel: ['tp', 'ep'] } as const;
const expertsCommon = {
  ...common,
  activations: [{ type: 'silu' }, { type: 'swiglu', alpha: {}, limit: {} }],
  sizes: { hiddenSize: { multipleOf: 1 }, moeIntermediateSize: { multipleOf: 1 } },
  numExperts: { min: 1 },
  topK: { min: 1 },
  mixedProjections: true,
} as const;
const linearCommon = { ...common, sizes: { inFeatures: { multipleOf: 1 }, outFeatures: { multipleOf: 1 } } } as const;

const expertRules: readonly ExpertSupportRule[] = [
  { ...expertsCommon, id: 'wide', schemes: decodable, arithmetic: wide },
  { ...expertsCommon, id: 'same', schemes: withQuantizedInput, arithmetic: same },
];
const linearRules: readonly LinearSupportRule[] = [
  { ...linearCommon, id: 'wide', schemes: decodable, arithmetic: wide },
  { ...linearCommon, id: 'same', schemes: withQuantizedInput, arithmetic: same },
];

/** Whatever else is there comes first. */
const lowestPriority = -1000;

/** Weights as they came, and decoded. */
interface DecodedWeights<T> {
  readonly matrices: readonly T[];
  readonly decode: MatrixDecoder;
}

/** The experts half of the reference backend. */
export function createReferenceMoeBackend(): MoeBackend {
  return {
    kind: 'moe',
    name: 'reference',
    rules: expertRules,
    priority: () => lowestPriority,
    footprint: (group) => expertsFootprint(group),
    pack: async (group, _rule, weights, { onProgress, signal }) => {
      const experts: ExpertMatrices[] = [];
      for (let slot = 0; slot < weights.numExperts; slot++) {
        signal?.throwIfAborted();
        const expert = await weights.expert(slot);
        experts.push(expert);
        onProgress?.(byteLengthOf(expert.gate) + byteLengthOf(expert.up) + byteLengthOf(expert.down));
      }
      return packedExperts(group, experts);
    },
    storage: objectStorage((packed) => handleOf<ExpertMatrices>(packed).matrices, packedExperts),
    unpack: (group, packed, slot) => {
      const expert = handleOf<ExpertMatrices>(packed).matrices[slot];
      if (expert === undefined) throw new RangeError(`${group.name} has no slot ${String(slot)}.`);
      return expert;
    },
    createKernel: (group, rule, packed) => {
      const { matrices, decode } = handleOf<ExpertMatrices>(packed);
      return Promise.resolve(referenceExpertsKernel(group, rule.arithmetic, matrices, decode));
    },
  };
}

/** The linear half of the reference backend. */
export function createReferenceLinearBackend(): LinearBackend {
  return {
    kind: 'linear',
    name: 'reference',
    rules: linearRules,
    priority: () => lowestPriority,
    footprint: (linear) =>
      footprintOf(linear.inFeatures * linear.outFeatures * bytesPerWeight(linear.scheme) + (linear.hasBias ? 4 * linear.outFeatures : 0)),
    pack: async (linear, _rule, weights, { onProgress, signal }) => {
      const modules: LinearModule[] = [];
      for (let index = 0; index < weights.numModules; index++) {
        signal?.throwIfAborted();
        const module = await weights.module(index);
        modules.push(module);
        onProgress?.(byteLengthOf(module.matrix));
      }
      return packedModules(linear, modules);
    },
    storage: objectStorage((packed) => handleOf<LinearModule>(packed).matrices, packedModules),
    unpack: (_linear, packed) => handleOf<LinearModule>(packed).matrices.map(({ matrix }) => matrix),
    createKernel: (linear, rule, packed) => {
      const { matrices, decode } = handleOf<LinearModule>(packed);
      return Promise.resolve(referenceLinearKernel(linear, rule.arithmetic, matrices, decode));
    },
  };
}

/** The backend as a plugin, for hosts that load plugins: it registers both kinds. */
export const referencePlugin: Plugin = definePlugin({
  name: 'reference',
  version: '0.1.0',
  contract: contractVersion,
  apply: (host) => {
    host.addMoeBackend(createReferenceMoeBackend());
    host.addLinearBackend(createReferenceLinearBackend());
  },
});

/** Decodes matrices as they arrive and counts what they take. */
class DecodedStore {
  residentBytes = 0;
  readonly #values = new Map<object, Float32Array>();

  add(matrix: SchemeRegistry[SchemeKey], bias: Float32Array | undefined): void {
    const values = decodeWeights(matrix);
    this.#values.set(matrix, values);
    this.residentBytes += values.byteLength + byteLengthOf(matrix) + (bias?.byteLength ?? 0);
  }

  readonly decode: MatrixDecoder = (matrix) => this.#values.get(matrix) ?? decodeWeights(matrix);
}

function packedExperts({ schemes: { w13, w2 } }: ExpertGroupSpec, experts: readonly ExpertMatrices[]): PackedWeights {
  const store = new DecodedStore();
  for (const { gate, up, down, bias } of experts) {
    store.add(gate, bias?.gate);
    store.add(up, bias?.up);
    store.add(down, bias?.down);
  }
  return packedWeights([...new Set([w13, w2])], store.residentBytes, { matrices: experts, decode: store.decode });
}

function packedModules({ scheme }: LinearSpec, modules: readonly LinearModule[]): PackedWeights {
  const store = new DecodedStore();
  for (const { matrix, bias } of modules) store.add(matrix, bias);
  return packedWeights([scheme], store.residentBytes, { matrices: modules, decode: store.decode });
}

function byteLengthOf(matrix: SchemeRegistry[SchemeKey]): number {
  return Object.values(matrix).reduce((sum: number, value: unknown) => sum + (ArrayBuffer.isView(value) ? value.byteLength : 0), 0);
}

function packedWeights<T>(schemes: readonly string[], residentBytes: number, handle: DecodedWeights<T>): PackedWeights {
  return { layout, [SCHEME]: schemes, residentBytes, handle, dispose: () => undefined };
}

/** Only this backend packs its layout, so it knows what hangs there. */
function handleOf<T>(packed: PackedWeights): DecodedWeights<T> {
  return packed.handle as DecodedWeights<T>;
}

function expertsFootprint({ hiddenSize, moeIntermediateSize, schemes, experts, hasBias }: ExpertGroupSpec): Footprint {
  const bias = hasBias ? 4 * (2 * moeIntermediateSize + hiddenSize) : 0;
  const weights = hiddenSize * moeIntermediateSize * (2 * bytesPerWeight(schemes.w13) + bytesPerWeight(schemes.w2));
  return footprintOf(experts.length * (weights + bias));
}

/** The stored weight and the decoded one. */
function bytesPerWeight(scheme: string): number {
  return (schemeInfo(scheme)?.bitsPerWeight ?? 16) / 8 + 4;
}

function footprintOf(residentBytes: number): Footprint {
  return { residentBytes, preparePeakBytes: 0, workspaceBytes: () => 0 };
}
