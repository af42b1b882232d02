/**
 * From a plan to kernels. The plan may be an old file, so the rules are evaluated again before anything is read; what `pack` returns is checked by
 * its brand, as the matrices are on their way in (narrowed-layer.ts).
 */
import type { ExpertWeights, Kernel, KernelContext, LinearWeights, PackContext, PackedWeights, Refusal, SupportRule } from '../backend.js';
import { MoeError, isMoeError, messageOf } from '../errors.js';
import type { Hooks } from '../hooks.js';
import type { ExpertGroupSpec, LayerSpec, LinearSpec } from '../layer-spec.js';
import { SCHEME, type SchemeKey } from '../quant/quant-scheme.js';
import { quarantine, type KernelVerification } from '../verification/kernel-verification.js';
import type { PackedCache } from '../packed-cache/packed-cache.js';
import { ExpertsSample, LinearSample, type LayerSample } from '../verification/layer-sample.js';
import { refusal } from './dimensions.js';
import type { ErasedBackend, ErasedLinearBackend, ErasedMoeBackend } from './erased-backend.js';
import { coverageRefusals, findPacker, missingKernel } from './evaluate.js';
import { linearKind, moeKind, type LayerKind } from './layer-kind.js';
import { narrowExperts, narrowLinear, type NarrowedLayer } from './narrowed-layer.js';
import type { Binding, LayerPlan } from './plan-types.js';
import { PackShare, preparedLayer, type PreparedBinding, type PreparedLayer } from './prepared-layer.js';

/** What preparing needs of a plugin host. */
export interface PrepareHost {
  readonly moeBackends: readonly ErasedMoeBackend[];
  readonly linearBackends: readonly ErasedLinearBackend[];
  readonly hooks: Hooks;
}

/** `maxNumTokens`: the most tokens that one call of the layer will bring; not above the plan's. */
export interface PrepareContext extends PackContext, KernelContext {
  /**
   * Makes kernels that run the declared arithmetic of the bound rules in plain functions, through the weights packed and unpacked by their backend.
   * Whether a kernel is built does not matter then. `device` is the simulated one.
   */
  readonly simulate?: boolean;
  /** Packed weights on disk; left out = they are packed from the checkpoint. Layers whose kernel has to be checked still are, and simulated ones. */
  readonly packedCache?: PackedCache;
  /** Checks every kernel before it serves; left out = kernels are taken at their word. Simulated ones need no check. */
  readonly verification?: KernelVerification;
}

/**
 * Packs a group's weights and makes the kernels that its plan binds. Bindings of one layout share one pack. When anything fails, what was made
 * until then is disposed.
 *
 * @throws {MoeError} MOE_UNSUPPORTED_LAYERS when the plan leaves the layer unserved or a rule does not cover it any more; MOE_PLUGIN_BRAND when
 *   weights of another scheme are handed over or come back; MOE_DEVICE_KERNEL when a backend throws or its kernel computes something else than its
 *   rule declares (`quarantineOf` says what to plan without); what reading throws.
 */
export async function prepareExperts(
  host: PrepareHost,
  layerPlan: LayerPlan,
  group: ExpertGroupSpec,
  weights: ExpertWeights,
  context: PrepareContext,
): Promise<PreparedLayer> {
  return prepare(moeKind, host.moeBackends, host.hooks, layerPlan, group, context, {
    newSample: () => new ExpertsSample(group),
    narrow: (sample) => narrowExperts(group, weights, context, sample?.take),
  });
}

/** As {@link prepareExperts}, for a linear. */
export async function prepareLinear(
  host: PrepareHost,
  layerPlan: LayerPlan,
  linear: LinearSpec,
  weights: LinearWeights,
  context: PrepareContext,
): Promise<PreparedLayer> {
  return prepare(linearKind, host.linearBackends, host.hooks, layerPlan, linear, context, {
    newSample: () => new LinearSample(linear),
    narrow: (sample) => narrowLinear(linear, weights, context, sample?.take),
  });
}

type Rules = SupportRule<SchemeKey>;

/** What differs between experts and linears. */
interface LayerAccess<Spec extends LayerSpec, Rule extends Rules, Sample> {
  readonly newSample: () => Sample;
  /** @param sample - what is to see the weights as they are read; undefined where no kernel is checked. */
  readonly narrow: (sample: Sample | undefined) => NarrowedLayer<Spec, Rule>;
}

async function prepare<Spec extends LayerSpec, Rule extends Rules, Sample extends LayerSample<never>>(
  kind: LayerKind<Spec, Rule>,
  registry: readonly ErasedBackend<Spec, Rule>[],
  hooks: Hooks,
  layerPlan: LayerPlan,
  spec: Spec,
  context: PrepareContext,
  { newSample, narrow }: LayerAccess<Spec, Rule, Sample>,
): Promise<PreparedLayer> {
  checkPlan(layerPlan, spec, context);
  const { device, simulate = false } = context;
  const verification = simulate ? undefined : context.verification;
  const bound = layerPlan.bindings.map((binding) => {
    const { erased, rule } = findCovering(kind, registry, spec, binding, context);
    const packer = findPacker(kind, spec, registry, erased, rule, context);
    if (packer === undefined)
      throw uncovered(spec, binding, [refusal('layout', `nobody installed packs the layout ${rule.layout}`, rule.layout, null)]);
    const { min, max } = binding.tokens;
    const tokens = { min, max: Math.min(max, context.maxNumTokens) };
    return { binding, spec, schemes: kind.schemes(spec), backend: erased, rule, tokens, packer };
  });
  const sample = bound.some((one) => verification?.needsSample(one) === true) ? newSample() : undefined;
  const layer = narrow(sample);
  const packs = new Map<string, PackShare>();
  const bindings: PreparedBinding[] = [];
  try {
    for (const one of bound) {
      const { binding, backend, rule, packer, tokens } = one;
      const where = `${backend.name}/${rule.id} on ${spec.name}`;
      let share = packs.get(rule.layout);
      if (share === undefined) {
        const doing = `packing weights by ${packer.erased.name}/${packer.rule.id} for ${where}`;
        const packed = await contained(context, spec, binding, doing, () =>
          packOrRestore(layer, packer, spec, sample !== undefined, context),
        );
        share = new PackShare(packed);
        packs.set(rule.layout, share);
        checkPacked(packed, kind.schemes(spec), rule.layout, packer.erased.name, packer.rule.id, spec.name);
      }
      const { packed } = share;
      const kernel = await contained(context, spec, binding, `making the kernel ${where}`, async () =>
        simulate
          ? layer.simulate(packer.erased, rule, packed)
          : layer.createKernel(backend, rule, packed, { device, maxNumTokens: tokens.max }),
      );
      checkEntry(kernel, where);
      bindings.push({ binding, kernel: share.use(kernel), packed: share.handle });
      if (verification?.isNeeded(one) === true) await verification.verify(one, kernel, sample);
    }
  } catch (error) {
    for (const { kernel } of bindings) kernel.dispose();
    for (const share of packs.values()) share.release();
    throw error;
  }
  const prepared = preparedLayer(layerPlan.name, bindings, [...packs.values()]);
  hooks.layerPrepared.call(layerPlan, prepared.residentBytes);
  return prepared;
}

/** From the disk where that can be: a sample for the check of a kernel is taken as the weights are read from the checkpoint. */
async function packOrRestore<Spec extends LayerSpec, Rule extends Rules>(
  layer: NarrowedLayer<Spec, Rule>,
  packer: { readonly erased: ErasedBackend<Spec, Rule>; readonly rule: Rule },
  spec: Spec,
  isSampled: boolean,
  { packedCache, simulate = false, onProgress }: PrepareContext,
): Promise<PackedWeights> {
  const { erased, rule } = packer;
  const cache = simulate || !layer.isStorable(erased) ? undefined : packedCache;
  const entry = { spec, layout: rule.layout, packer: erased };
  const restored = isSampled ? undefined : await cache?.restore(entry, (notes, fill) => layer.restore(erased, rule, notes, fill));
  if (restored !== undefined) {
    onProgress?.(restored.residentBytes);
    return restored;
  }
  const packed = await layer.pack(erased, rule);
  await cache?.save(entry, () => layer.save(erased, packed));
  return packed;
}

function checkPlan(layerPlan: LayerPlan, spec: LayerSpec, { maxNumTokens }: PrepareContext): void {
  if (layerPlan.name !== spec.name || layerPlan.kind !== spec.kind) {
    throw new MoeError(
      'MOE_INTERNAL',
      `The plan of ${layerPlan.name} (${layerPlan.kind}) was handed over for ${spec.name} (${spec.kind}).`,
      { plan: layerPlan.name, layer: spec.name },
    );
  }
  const last = layerPlan.bindings[layerPlan.bindings.length - 1];
  if (last === undefined) {
    throw new MoeError('MOE_UNSUPPORTED_LAYERS', `The plan leaves ${spec.name} without a kernel; "moe-server plan" says why.`, {
      layer: spec.name,
      refused: layerPlan.refused,
    });
  }
  if (last.tokens.max < maxNumTokens) {
    throw new MoeError(
      'MOE_INTERNAL',
      `The plan of ${spec.name} was made for calls of up to ${last.tokens.max} tokens; ${maxNumTokens} are to come.`,
      { layer: spec.name, planned: last.tokens.max, maxNumTokens },
    );
  }
}

/** The backend and rule that a binding names, asked once more whether they cover the layer: the plan may be an old file. */
function findCovering<Spec extends LayerSpec, Rule extends Rules>(
  kind: LayerKind<Spec, Rule>,
  registry: readonly ErasedBackend<Spec, Rule>[],
  spec: Spec,
  binding: Binding,
  { device, maxNumTokens, simulate = false }: PrepareContext,
): { readonly erased: ErasedBackend<Spec, Rule>; readonly rule: Rule } {
  const erased = registry.find(({ name }) => name === binding.backend);
  const rule = erased?.rules.find(({ id }) => id === binding.rule);
  if (erased === undefined || rule === undefined) {
    throw uncovered(spec, binding, [refusal('backend', 'it is not installed', `${binding.backend}/${binding.rule}`, null)]);
  }
  const refusals = coverageRefusals(kind, spec, erased, rule, { device, maxNumTokens, requirements: {} });
  const { min = 1, max = Infinity } = rule.tokens;
  if (binding.tokens.min < min || Math.min(binding.tokens.max, maxNumTokens) > max) {
    refusals.push(
      refusal(
        'tokens',
        `the plan gives it calls of ${binding.tokens.min} to ${binding.tokens.max} tokens, its rule does not`,
        rule.tokens,
        binding.tokens,
      ),
    );
  }
  const missing = simulate ? undefined : missingKernel(erased, rule);
  if (missing !== undefined)
    refusals.push(refusal('notBuilt', `its kernel is not built here: ${missing.replace(/\.\s*$/, '')}`, true, false));
  if (refusals.length > 0) throw uncovered(spec, binding, refusals);
  return { erased, rule };
}

function uncovered(spec: LayerSpec, { backend, rule }: Binding, refusals: readonly Refusal[]): MoeError {
  const reasons = refusals.map(({ message }) => message).join(' ');
  return new MoeError(
    'MOE_UNSUPPORTED_LAYERS',
    `The plan binds ${spec.name} to ${backend}/${rule}, which does not cover it: ${reasons} Make a new plan.`,
    {
      layer: spec.name,
      backend,
      rule,
      refusals,
    },
  );
}

/**
 * What a backend throws gets the place where it happened, and what a plan must leave out so that another kernel takes the layer; other errors of
 * ours and aborts already have theirs.
 */
async function contained<T>(
  { signal }: PrepareContext,
  spec: LayerSpec,
  { backend, rule }: Binding,
  what: string,
  run: () => Promise<T>,
): Promise<T> {
  try {
    return await run();
  } catch (error) {
    if ((isMoeError(error) && error.code !== 'MOE_DEVICE_KERNEL') || signal?.aborted === true) throw error;
    const message = `${what}: ${messageOf(error)}`;
    const details = { operation: what, quarantine: quarantine(spec, backend, rule, `it failed while ${message}`) };
    throw new MoeError('MOE_DEVICE_KERNEL', message, details, { cause: error });
  }
}

/** @throws {MoeError} MOE_PLUGIN_BRAND; the caller disposes. */
function checkPacked(
  packed: PackedWeights,
  schemes: readonly SchemeKey[],
  layout: string,
  backend: string,
  rule: string,
  layer: string,
): void {
  const brand = packed[SCHEME] as unknown;
  const got = Array.isArray(brand) ? [...new Set(brand.map(String))].sort() : [];
  const expected = [...schemes].sort();
  if (packed.layout === layout && got.join() === expected.join()) return;
  throw new MoeError(
    'MOE_PLUGIN_BRAND',
    `The backend "${backend}" (rule ${rule}) packed ${layer} as ${got.join('+') || 'unbranded weights'} in layout ${packed.layout}; the plan says ${expected.join('+')} in layout ${layout}. Report this to the plugin's author.`,
    { backend, rule, layer, expected: { schemes: expected, layout }, got: { schemes: got, layout: packed.layout } },
  );
}

function checkEntry(kernel: Kernel, where: string): void {
  const type = (kernel as Partial<Kernel> | undefined)?.entry?.type as string | undefined;
  if (type === 'native' || type === 'js-experts' || type === 'js-linear') return;
  throw new MoeError(
    'MOE_DEVICE_KERNEL',
    `making the kernel ${where}: its entry must be of type native, js-experts or js-linear; it is ${String(type)}.`,
    { kernel: where },
  );
}
