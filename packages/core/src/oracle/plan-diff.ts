import { MoeError } from '../errors.js';
import { describeDevice, listOf } from './dimensions.js';
import { describeGroup, groupBy, orderOf } from './layer-groups.js';
import { formatBytes } from './memory.js';
import type { PlanFile, PlanPlugin } from './plan-file.js';
import { canonicalJson } from './plan-hash.js';
import type { Binding, LayerPlan, Plan } from './plan-types.js';

/** A kernel as two plans are compared by it: all of a binding but the sentence. */
export type BoundKernel = Omit<Binding, 'because'>;

/** A layer that is served differently, or that only one of two plans has. */
export interface LayerChange extends Pick<LayerPlan, 'name' | 'kind' | 'role' | 'scheme'> {
  readonly change: 'moved' | 'added' | 'removed';
  /** Empty: unserved, or not there. For calls up to what the newer plan allows. */
  readonly from: readonly BoundKernel[];
  readonly to: readonly BoundKernel[];
  /** Without a stop at the end. */
  readonly why: string;
}

export interface PlanDiff {
  /** In the order of the newer plan, removed ones last. */
  readonly changes: readonly LayerChange[];
  /** For people: what else differs, then one sentence per group of layers that changed alike. Empty when nothing differs. */
  readonly sentences: readonly string[];
}

/** What two plans are compared by; `plugins` as in a plan file. */
export type ComparedPlan = Plan | PlanFile;

/**
 * What became of each layer between two plans, and why. The bindings of `before` count for calls as large as those of `after`, so that another
 * `--max-num-batched-tokens` alone moves no layer.
 */
export function diffPlans(before: ComparedPlan, after: ComparedPlan): PlanDiff {
  const [old, now] = [fileOf(before), fileOf(after)];
  const changes = changesBetween(old.plan, now.plan, (binding) => binding);
  return { changes, sentences: [...frameSentences(old, now), ...changeSentences(changes)] };
}

/**
 * The layers for which a kept plan no longer holds: they would be bound otherwise now, are gone, or are new. A kernel that was only declared
 * when the lock was made and is built now is no change; neither is another device on which every layer gets the same kernel.
 *
 * @param lock - the kept plan.
 * @param plan - made now.
 * @returns empty when it holds; {@link explainBrokenLock} makes one error of the rest.
 */
export function checkLock(lock: Plan, plan: Plan): readonly LayerChange[] {
  // What was not built may be by now.
  return changesBetween(lock, plan, (binding, counterpart) =>
    binding.built ? binding : { ...binding, built: counterpart?.built ?? false },
  );
}

/**
 * The error of a start that was told to follow a plan which no longer holds; names every group of layers, where it went and why.
 *
 * @param file - the lock's name.
 */
export function explainBrokenLock(changes: readonly LayerChange[], file: string): MoeError {
  const sentences = changeSentences(changes);
  return new MoeError(
    'MOE_PLAN_MOVED',
    `The plan in ${file} no longer holds for ${numLayers(changes.length)}:\n${sentences.map((sentence) => `  ${sentence}`).join('\n')}\n` +
      `Restore what it was made with, or accept the change with "moe-server plan --out ${file}".`,
    { file, changes },
  );
}

type Adapt = (binding: BoundKernel, counterpart: BoundKernel | undefined) => BoundKernel;

function changesBetween(before: Plan, after: Plan, adapt: Adapt): LayerChange[] {
  const keyOf = ({ kind, name }: LayerPlan) => `${kind} ${name}`;
  const old = new Map(before.layers.map((layer) => [keyOf(layer), layer]));
  const now = new Set(after.layers.map(keyOf));
  const changes = after.layers.flatMap((layer): LayerChange[] => {
    const { name, kind, role, scheme } = layer;
    const earlier = old.get(keyOf(layer));
    const to = kernelsOf(layer);
    if (earlier === undefined)
      return [{ change: 'added', name, kind, role, scheme, from: [], to, why: 'the older plan has no such layer' }];
    const from = upTo(kernelsOf(earlier), after.maxNumTokens).map((binding, index) => adapt(binding, to[index]));
    if (scheme === earlier.scheme && role === earlier.role && canonicalJson(from) === canonicalJson(to)) return [];
    return [{ change: 'moved', name, kind, role, scheme, from, to, why: whyMoved(earlier, layer, from, to) }];
  });
  const removed = before.layers
    .filter((layer) => !now.has(keyOf(layer)))
    .map((layer): LayerChange => {
      const { name, kind, role, scheme } = layer;
      return { change: 'removed', name, kind, role, scheme, from: kernelsOf(layer), to: [], why: 'the newer plan has no such layer' };
    });
  return [...changes, ...removed];
}

function kernelsOf({ bindings }: LayerPlan): BoundKernel[] {
  return bindings.map(({ because: _, ...kernel }) => kernel);
}

/** The bindings for calls of 1 to `maxNumTokens` tokens: what lies beyond goes, and the last one takes what is new. */
function upTo(kernels: readonly BoundKernel[], maxNumTokens: number): BoundKernel[] {
  const kept = kernels.filter(({ tokens }) => tokens.min <= maxNumTokens);
  return kept.map((kernel, index) =>
    index < kept.length - 1 ? kernel : { ...kernel, tokens: { min: kernel.tokens.min, max: maxNumTokens } },
  );
}

function whyMoved(earlier: LayerPlan, layer: LayerPlan, from: readonly BoundKernel[], to: readonly BoundKernel[]): string {
  const reasons: string[] = [];
  if (layer.scheme !== earlier.scheme) reasons.push(`its weights are ${layer.scheme} now and were ${earlier.scheme}`);
  if (layer.role !== earlier.role) reasons.push(`it is a ${layer.role} layer now and was a ${earlier.role} layer`);
  if (layer.cachedAs !== earlier.cachedAs)
    reasons.push(`its keys and values are cached as ${layer.cachedAs ?? 'bf16'} now and were as ${earlier.cachedAs ?? 'bf16'}`);
  for (const kernel of from) {
    const same = to.find((one) => isSameRule(one, kernel));
    if (same === undefined) reasons.push(whyGone(kernel, layer));
    else reasons.push(...differences(kernel, same));
  }
  for (const kernel of to) if (!from.some((one) => isSameRule(one, kernel))) reasons.push(...whyNew(kernel, earlier, layer));
  return [...new Set(reasons)].join('; ');
}

/** Why the newer plan does not bind a kernel of the older one. */
function whyGone(kernel: BoundKernel, layer: LayerPlan): string {
  const name = nameOf(kernel);
  const refused = layer.refused.find((one) => isSameRule(one, kernel));
  if (refused !== undefined) return `${name} is refused now: ${sentencesOf(refused.reasons)}`;
  if (layer.eligible.some((one) => isSameRule(one, kernel))) {
    const [lead] = layer.bindings;
    return `${name} still covers it${lead === undefined ? '' : `, but ${nameOf(lead)} was taken (${lead.because})`}`;
  }
  const isInstalled = [...layer.bindings, ...layer.eligible, ...layer.refused].some(({ backend }) => backend === kernel.backend);
  return isInstalled ? `${kernel.backend} has no rule ${kernel.rule} any more` : `no backend named ${kernel.backend} is installed any more`;
}

/** What kept the older plan from binding a kernel of the newer one; nothing when it could have. */
function whyNew(kernel: BoundKernel, earlier: LayerPlan, layer: LayerPlan): readonly string[] {
  const refused = earlier.refused.find((one) => isSameRule(one, kernel));
  if (refused !== undefined) return [`${nameOf(kernel)} was refused then: ${sentencesOf(refused.reasons)}`];
  if (earlier.eligible.some((one) => isSameRule(one, kernel))) {
    const because = layer.bindings.find((one) => isSameRule(one, kernel))?.because;
    return earlier.bindings.length === 1 && layer.bindings.length === 1 ? [] : [`${nameOf(kernel)} was taken now (${because ?? ''})`];
  }
  return [`${nameOf(kernel)} is new`];
}

/** One rule in both plans, with another binding. */
function differences(from: BoundKernel, to: BoundKernel): readonly string[] {
  const name = nameOf(to);
  const found: string[] = [];
  if (from.layout !== to.layout) found.push(`${name} reads the layout ${to.layout} now and read ${from.layout}`);
  if (from.numerics !== to.numerics) found.push(`the numerics of ${name} are "${to.numerics}" now and were "${from.numerics}"`);
  if (from.built !== to.built) found.push(`the kernel of ${name} is ${to.built ? 'built now' : 'not built any more'}`);
  if (from.tokens.min !== to.tokens.min || from.tokens.max !== to.tokens.max) {
    found.push(`${name} takes calls of ${to.tokens.min} to ${to.tokens.max} tokens now and took ${from.tokens.min} to ${from.tokens.max}`);
  }
  const [packedBefore, packedNow] = [from.packedBy ?? from, to.packedBy ?? to];
  if (!isSameRule(packedBefore, packedNow)) found.push(`${nameOf(packedNow)} packs its weights now and ${nameOf(packedBefore)} did`);
  return found;
}

/** What differs besides the layers. */
function frameSentences(old: PlanFile, now: PlanFile): readonly string[] {
  const sentences: string[] = [];
  const [before, after] = [old.plan, now.plan];
  if (canonicalJson(before.device) !== canonicalJson(after.device)) {
    const [was, is] = [describeDevice(before.device), describeDevice(after.device)];
    sentences.push(was === is ? `Memory, threads or features of ${is} differ.` : `The device is ${is} now and was ${was}.`);
  }
  if (before.maxNumTokens !== after.maxNumTokens) {
    sentences.push(`Calls bring up to ${after.maxNumTokens} tokens now and brought up to ${before.maxNumTokens}.`);
  }
  if (before.assumesBuilt !== after.assumesBuilt) {
    sentences.push(`The ${after.assumesBuilt ? 'newer' : 'older'} plan judges declared rules as if every kernel were built.`);
  }
  sentences.push(...pluginSentences(old.plugins, now.plugins));
  const [was, is] = [before.bytes.residentBytes, after.bytes.residentBytes];
  if (was !== is) sentences.push(`Packed weights take ${formatBytes(is)} now and took ${formatBytes(was)}.`);
  return sentences;
}

function pluginSentences(old: readonly PlanPlugin[], now: readonly PlanPlugin[]): readonly string[] {
  // A plan that was printed, not written to a file, does not know them.
  if (old.length === 0 || now.length === 0) return [];
  const names = [...new Set([...old, ...now].map(({ name }) => name))].sort();
  return names.flatMap((name) => {
    const [was, is] = [old, now].map((plugins) => plugins.find((one) => one.name === name)?.version);
    if (was === is) return [];
    if (is === undefined) return [`The plugin ${name} ${was ?? ''} is gone.`];
    return [was === undefined ? `The plugin ${name} ${is} is new.` : `The plugin ${name} is of version ${is} now and was of ${was}.`];
  });
}

function changeSentences(changes: readonly LayerChange[]): readonly string[] {
  const groups = groupBy(changes, ({ change, kind, role, scheme, from, to, why }) =>
    JSON.stringify([orderOf({ kind, role }), scheme, change, describeKernels(from), describeKernels(to), why]),
  );
  return groups.map(([first, alike]) => {
    const what = describeGroup(first, alike);
    if (first.change === 'added')
      return `${what}: new, ${first.to.length === 0 ? 'and unserved' : `served by ${describeKernels(first.to)}`}.`;
    if (first.change === 'removed') return `${what}: gone; ${describeKernels(first.from)} served it.`;
    const [from, to] = [describeKernels(first.from), describeKernels(first.to)];
    return from === to ? `${what}: ${first.why}.` : `${what} moved from ${from} to ${to}: ${first.why}.`;
  });
}

/** `b12x/w4a4`, or with intervals where there are several. */
function describeKernels(kernels: readonly BoundKernel[]): string {
  if (kernels.length === 0) return 'nobody';
  if (kernels.length === 1) return kernels.map(nameOf).join('');
  return listOf(kernels.map((kernel) => `${nameOf(kernel)} (${kernel.tokens.min}–${kernel.tokens.max})`));
}

function nameOf({ backend, rule }: Pick<BoundKernel, 'backend' | 'rule'>): string {
  return `${backend}/${rule}`;
}

function isSameRule(a: Pick<BoundKernel, 'backend' | 'rule'>, b: Pick<BoundKernel, 'backend' | 'rule'>): boolean {
  return a.backend === b.backend && a.rule === b.rule;
}

function sentencesOf(reasons: readonly { readonly message: string }[]): string {
  return reasons.map(({ message }) => message.replace(/\.$/, '')).join(', and ');
}

function fileOf(compared: ComparedPlan): PlanFile {
  return 'plan' in compared ? compared : { plan: compared, plugins: [] };
}

function numLayers(count: number): string {
  return count === 1 ? '1 layer' : `${count} layers`;
}
