/**
 * The one place where a backend's scheme type, erased in the registry, is put back, so the one place that has to prove it: the caller has asked the
 * rules again, and every matrix is checked by its brand before the backend sees it, and again when it comes back.
 */
import type {
  ExpertMatrices,
  ExpertSupportRule,
  ExpertWeights,
  Kernel,
  KernelContext,
  LinearBackend,
  LinearSupportRule,
  LinearWeights,
  MoeBackend,
  PackContext,
  PackedImage,
  PackedStorage,
  PackedWeights,
  RestoreParts,
  SupportRule,
} from '../backend.js';
import type { ReadBuffer } from '../checkpoint/read-buffer.js';
import { MoeError } from '../errors.js';
import type { ExpertGroupSpec, LayerSpec, LinearSpec } from '../layer-spec.js';
import { SCHEME, type SchemeKey, type SchemeRegistry } from '../quant/quant-scheme.js';
import { simulateExperts, simulateLinear } from '../simulation/simulated-kernel.js';
import type { ErasedBackend } from './erased-backend.js';

/** One layer with its weights: the calls into a backend, with its scheme type put back inside. */
export interface NarrowedLayer<Spec extends LayerSpec, Rule extends SupportRule<SchemeKey>> {
  /** Reads the weights from their file; may be called once per layout. */
  readonly pack: (erased: ErasedBackend<Spec, Rule>, rule: Rule) => Promise<PackedWeights>;
  /** Whether the backend's packed weights can be kept; the two below are for those only. */
  readonly isStorable: (erased: ErasedBackend<Spec, Rule>) => boolean;
  readonly save: (erased: ErasedBackend<Spec, Rule>, packed: PackedWeights) => PackedImage;
  readonly restore: (erased: ErasedBackend<Spec, Rule>, rule: Rule, notes: unknown, fill: RestoreParts) => Promise<PackedWeights>;
  readonly createKernel: (erased: ErasedBackend<Spec, Rule>, rule: Rule, packed: PackedWeights, context: KernelContext) => Promise<Kernel>;
  /** A kernel that runs the arithmetic of `rule` on what `packer` unpacks. Only after `pack`. */
  readonly simulate: (packer: ErasedBackend<Spec, Rule>, rule: Rule, packed: PackedWeights) => Kernel;
}

/** A module of a linear, as it was read. */
export type ReadModule = Awaited<ReturnType<LinearWeights['module']>>;

/**
 * The experts of a group. The widest type stands for the schemes that only the run time knows.
 *
 * @param onRead - sees every expert before the backend does, and copies what it keeps: the buffers are the backend's.
 */
export function narrowExperts(
  group: ExpertGroupSpec,
  weights: ExpertWeights,
  context: PackContext,
  onRead: (slot: number, expert: ExpertMatrices) => void = () => undefined,
): NarrowedLayer<ExpertGroupSpec, ExpertSupportRule> {
  const checkExpert = (expert: ExpertMatrices, slot: number, backend: string, rule: string): void => {
    const { w13, w2 } = group.schemes;
    for (const [part, scheme] of [
      ['gate', w13],
      ['up', w13],
      ['down', w2],
    ] as const) {
      checkBrand(expert[part], scheme, backend, rule, group.name, `expert ${String(group.experts[slot])} ${part}`);
    }
  };
  return {
    pack: async (erased, { id }) => {
      const backend = erased.implementation as MoeBackend;
      if (weights.numExperts !== group.experts.length) {
        throw new MoeError('MOE_INTERNAL', `${group.name} has ${group.experts.length} experts, its weights ${weights.numExperts}.`, {
          layer: group.name,
        });
      }
      const checked = {
        numExperts: weights.numExperts,
        expert: async (slot: number, into?: ReadBuffer) => {
          const expert = await weights.expert(slot, into);
          checkExpert(expert, slot, erased.name, id);
          onRead(slot, expert);
          return expert;
        },
      };
      return backend.pack(group, ownRule(backend.rules, id), checked, context);
    },
    isStorable: (erased) => (erased.implementation as MoeBackend).storage !== undefined,
    save: (erased, packed) => storageOf(erased.implementation as MoeBackend).save(group, packed),
    restore: async (erased, { id }, notes, fill) => {
      const backend = erased.implementation as MoeBackend;
      return storageOf(backend).restore(group, ownRule(backend.rules, id), notes, fill, context);
    },
    createKernel: async (erased, { id }, packed, kernelContext) => {
      const backend = erased.implementation as MoeBackend;
      return backend.createKernel(group, ownRule(backend.rules, id), packed, kernelContext);
    },
    simulate: (packer, rule, packed) => {
      const backend = packer.implementation as MoeBackend;
      const experts = group.experts.map((_, slot) => {
        const expert = backend.unpack(group, packed, slot);
        checkExpert(expert, slot, packer.name, rule.id);
        return expert;
      });
      return simulateExperts(group, rule.arithmetic, experts);
    },
  };
}

/** As {@link narrowExperts}, for the modules of a linear. */
export function narrowLinear(
  linear: LinearSpec,
  weights: LinearWeights,
  context: PackContext,
  onRead: (index: number, module: ReadModule) => void = () => undefined,
): NarrowedLayer<LinearSpec, LinearSupportRule> {
  const checkModule = (matrix: SchemeRegistry[SchemeKey], index: number, backend: string, rule: string): void => {
    checkBrand(matrix, linear.scheme, backend, rule, linear.name, linear.modules[index]?.name ?? `module ${index}`);
  };
  // `unpack` gives matrices only, so simulation keeps the biases as they were read.
  const biases: (Float32Array | undefined)[] = [];
  return {
    pack: async (erased, { id }) => {
      const backend = erased.implementation as LinearBackend;
      if (weights.numModules !== linear.modules.length) {
        throw new MoeError('MOE_INTERNAL', `${linear.name} has ${linear.modules.length} modules, its weights ${weights.numModules}.`, {
          layer: linear.name,
        });
      }
      const checked = {
        numModules: weights.numModules,
        module: async (index: number, into?: ReadBuffer) => {
          const module = await weights.module(index, into);
          checkModule(module.matrix, index, erased.name, id);
          biases[index] = module.bias?.slice();
          onRead(index, module);
          return module;
        },
      };
      return backend.pack(linear, ownRule(backend.rules, id), checked, context);
    },
    isStorable: (erased) => (erased.implementation as LinearBackend).storage !== undefined,
    save: (erased, packed) => storageOf(erased.implementation as LinearBackend).save(linear, packed),
    restore: async (erased, { id }, notes, fill) => {
      const backend = erased.implementation as LinearBackend;
      return storageOf(backend).restore(linear, ownRule(backend.rules, id), notes, fill, context);
    },
    createKernel: async (erased, { id }, packed, kernelContext) => {
      const backend = erased.implementation as LinearBackend;
      return backend.createKernel(linear, ownRule(backend.rules, id), packed, kernelContext);
    },
    simulate: (packer, rule, packed) => {
      const backend = packer.implementation as LinearBackend;
      const modules = backend.unpack(linear, packed).map((matrix, index) => {
        checkModule(matrix, index, packer.name, rule.id);
        return { matrix, bias: biases[index] };
      });
      return simulateLinear(linear, rule.arithmetic, modules);
    },
  };
}

/** @throws {MoeError} MOE_PLUGIN_BRAND when a matrix is not of the scheme that the rules were evaluated for. */
function checkBrand(
  matrix: { readonly [SCHEME]?: unknown },
  expected: SchemeKey,
  backend: string,
  rule: string,
  layer: string,
  part: string,
): void {
  const got = matrix[SCHEME];
  if (got === expected) return;
  throw new MoeError(
    'MOE_PLUGIN_BRAND',
    `${layer}, ${part}: the weights are branded ${String(got)}, but the backend "${backend}" (rule ${rule}) was bound to ${expected}. They are not handed over.`,
    { backend, rule, layer, part, expected, got: String(got) },
  );
}

/** Asked for only after `isStorable`. */
function storageOf<Spec, Rule>({
  name,
  storage,
}: {
  readonly name: string;
  readonly storage?: PackedStorage<Spec, Rule>;
}): PackedStorage<Spec, Rule> {
  if (storage === undefined) throw new TypeError(`The backend "${name}" does not store packed weights.`);
  return storage;
}

/** The backend's own rule object, which its functions may know by identity. */
function ownRule<Rule extends { readonly id: string }>(rules: readonly Rule[], id: string): Rule {
  const rule = rules.find((one) => one.id === id);
  if (rule === undefined)
    throw new MoeError('MOE_PLUGIN_RULE', `The rule "${id}" was registered and is gone; rules must not change after registration.`, {
      rule: id,
    });
  return rule;
}
