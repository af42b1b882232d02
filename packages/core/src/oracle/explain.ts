import type { NumericsClass } from '../arithmetic.js';
import type { Refusal, RefusalDimension } from '../backend.js';
import { MoeError } from '../errors.js';
import type { LayerRole, LayerSpec } from '../layer-spec.js';
import { nearestMiss } from './because.js';
import { describeDevice, listOf } from './dimensions.js';
import { describeGroup, groupBy, orderOf } from './layer-groups.js';
import { formatBytes } from './memory.js';
import type { LayerPlan, Plan, RuleRefusal } from './plan-types.js';
import { describeSource, type Preference } from './preferences.js';

/** Whether a server may start on the plan: every layer has a kernel, and the sum fits. */
export function isServable(plan: Plan): boolean {
  return plan.unserved.length === 0 && plan.bytes.fits;
}

/**
 * The one error of a plan that is not servable. Names every group of unserved layers, per backend the nearest miss with all its reasons, and
 * what would serve; `details.groups` has the same as data. A plan whose only fault is its size becomes an error with the sum.
 *
 * @returns a MOE_UNSUPPORTED_LAYERS or MOE_CAPACITY_MEMORY error, to be thrown by the caller.
 */
export function explainUnserved(plan: Plan): MoeError {
  if (plan.unserved.length === 0) return explainBytes(plan);
  const groups = groupBy(
    plan.layers.filter(({ bindings }) => bindings.length === 0),
    (layer) => JSON.stringify([orderOf(layer), layer.scheme, layer.refused]),
  );
  const described = groups.map(([first, layers]) => ({
    kind: first.kind,
    role: first.role,
    scheme: first.scheme,
    layers: layers.map(({ name }) => name),
    refused: first.refused,
    wouldServe: wouldServe(first.refused),
  }));
  const texts = groups.map(([first, layers], index) => {
    const backends = groupBy(first.refused, ({ backend }) => backend);
    const reasons = backends.map(([one, rules]) => {
      const nearest = nearestMiss(rules);
      const rule = rules.length > 1 ? ` (nearest of its ${rules.length} rules: ${nearest?.rule ?? ''})` : '';
      return `    ${one.backend}${rule}: ${(nearest?.reasons ?? []).map(({ message }) => message).join(' ')}`;
    });
    if (reasons.length === 0) reasons.push(`    No ${first.kind === 'moe' ? 'experts' : 'linear'} backend is installed at all.`);
    const remedies = groupBy(described[index]?.wouldServe ?? [], ({ without }) => without);
    const remedy = remedies.map(([{ without }, ways]) => {
      const backends = [...new Set(ways.map(({ backend }) => backend))];
      return `    It would be served by ${listOf(backends, 'or')} ${without}.`;
    });
    return [`  ${describeGroup(first, layers)}`, ...reasons, ...invariantRules(first), ...remedy].join('\n');
  });
  const numGroups = new Set(groups.map(([{ kind, role, scheme }]) => `${kind} ${role} ${scheme}`)).size;
  const message = `No backend serves ${plan.unserved.length} of ${plan.layers.length} layers (${numGroups} ${numGroups === 1 ? 'group' : 'groups'}) on ${describeDevice(plan.device)}:\n${texts.join('\n')}`;
  return new MoeError('MOE_UNSUPPORTED_LAYERS', message, { device: plan.device, groups: described });
}

/** One line of a plan in a terminal: layers that are alike in kind, role, scheme and kernel. */
export interface PlanSummaryRow {
  readonly kind: LayerSpec['kind'];
  readonly role: LayerRole;
  readonly scheme: string;
  /** `b12x`, or `b12x (1–64) + cutlass (65–8192)` where calls of different sizes go to different kernels; undefined when unserved. */
  readonly backend: string | undefined;
  /** Rules, joined like the backends. */
  readonly rule: string | undefined;
  readonly numLayers: number;
  readonly firstLayer: string;
  readonly lastLayer: string;
  /** The worst of the bindings; undefined when unserved. */
  readonly numerics: NumericsClass | undefined;
  /** False when some kernel is declared but not built. */
  readonly built: boolean;
  readonly because: string;
  /** Of all layers of the row. */
  readonly residentBytes: number;
}

/** Groups a plan by kind, role, scheme and kernels, for people. Experts come first, targets before drafts, then by scheme. */
export function summarizePlan(plan: Plan): PlanSummaryRow[] {
  const groups = groupBy(plan.layers, ({ kind, role, scheme, bindings }) =>
    JSON.stringify([
      orderOf({ kind, role }),
      scheme,
      bindings.map(({ backend, rule, tokens, because }) => [backend, rule, tokens, because]),
    ]),
  );
  return groups.map(([first, layers]) => {
    const { kind, role, scheme, bindings } = first;
    const several = bindings.length > 1;
    const span = ({ min, max }: { readonly min: number; readonly max: number }) => (several ? ` (${min}–${max})` : '');
    const numerics = (['approximate', 'wider', 'same'] as const).find((one) => bindings.some((binding) => binding.numerics === one));
    const nearest = nearestMiss(first.refused);
    return {
      kind,
      role,
      scheme,
      backend: bindings.length === 0 ? undefined : bindings.map(({ backend, tokens }) => `${backend}${span(tokens)}`).join(' + '),
      rule: bindings.length === 0 ? undefined : bindings.map(({ rule }) => rule).join(' + '),
      numLayers: layers.length,
      firstLayer: first.name,
      lastLayer: layers[layers.length - 1]?.name ?? first.name,
      numerics,
      built: bindings.every(({ built }) => built),
      because:
        bindings.length > 0
          ? bindings.map(({ because }) => because).join('; ')
          : (nearest?.reasons.map(({ message }) => message).join(' ') ?? 'no backend is installed'),
      residentBytes: layers.reduce((sum, { bytes }) => sum + bytes.residentBytes, 0),
    };
  });
}

/** Dimensions that somebody can lift without another model, device or backend, and how. */
const liftable: Partial<Record<RefusalDimension, (refusal: Refusal) => string>> = {
  preference: ({ required }) => `without ${describeSource((required as Preference).source)}`,
  numerics: ({ actual }) => `with --numerics ${actual === 'approximate' ? 'approximate' : 'auto'}`,
  onlyWhenNamed: ({ required }) => `when ${String(required)} is named`,
  notBuilt: () => 'once its kernel is built',
  hook: ({ message }) => `if it were not for a plugin: ${message.replace(/\.$/, '')}`,
  quarantined: () => 'once it is out of quarantine',
  batchInvariant: () => 'without --batch-invariant',
};

function wouldServe(
  refused: readonly RuleRefusal[],
): readonly { readonly backend: string; readonly rule: string; readonly without: string }[] {
  return refused.flatMap(({ backend, rule, reasons }) => {
    const ways = reasons.map((reason) => liftable[reason.dimension]?.(reason));
    return ways.includes(undefined) ? [] : [{ backend, rule, without: ways.join(', ') }];
  });
}

/** Where batch invariance was asked for and stands in the way: who has it, since that is the list to choose a checkpoint or plugin by. */
function invariantRules({ refused, scheme }: LayerPlan): readonly string[] {
  const isVariant = ({ reasons }: RuleRefusal) => reasons.some(({ dimension }) => dimension === 'batchInvariant');
  if (!refused.some(isVariant)) return [];
  const invariant = refused.filter((one) => !isVariant(one)).map(({ backend, rule }) => `${backend}/${rule}`);
  if (invariant.length === 0) return ['    No rule of any backend is batch-invariant.'];
  return [`    Batch-invariant ${invariant.length === 1 ? 'is' : 'are'} only ${listOf(invariant)}; none covers these layers of ${scheme}.`];
}

function explainBytes({ bytes, device }: Plan): MoeError {
  const { residentBytes, preparePeakBytes, workspaceBytes, requiredBytes, availableBytes } = bytes;
  const transient =
    preparePeakBytes >= workspaceBytes
      ? `${formatBytes(preparePeakBytes)} while the largest layer is packed`
      : `${formatBytes(workspaceBytes)} of workspace`;
  return new MoeError(
    'MOE_CAPACITY_MEMORY',
    `The plan does not fit: ${formatBytes(residentBytes)} of packed weights and ${transient} make ${formatBytes(requiredBytes)}, and ${describeDevice(device)} has ` +
      `${formatBytes(availableBytes ?? 0)} for them. No cheaper choice of kernels fits either; free memory, lower --max-num-batched-tokens, or use a device with more.`,
    { ...bytes, device },
  );
}
