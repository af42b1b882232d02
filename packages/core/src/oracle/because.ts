/** The sentences of a plan: why a kernel was bound, and what became of each wish. */
import type { SupportRule } from '../backend.js';
import type { LayerSpec } from '../layer-spec.js';
import type { SchemeKey } from '../quant/quant-scheme.js';
import { listOf, schemeRefusal } from './dimensions.js';
import type { Candidate } from './evaluate.js';
import { ruleName, whyMeasuredFirst } from './evidence.js';
import type { Option } from './options.js';
import type { Binding, PlanRequest, RuleRefusal } from './plan-types.js';
import { describeSource, isInScope, type Preference, type PreferenceChain, type RankedPreference } from './preferences.js';

type Rules = SupportRule<SchemeKey>;

/** What became of one wish for one class of layers. Wishes behind the one that was granted have no outcome: they were not reached. */
export interface WishOutcome {
  readonly preference: Preference;
  readonly isGranted: boolean;
  /** Why not. */
  readonly reason: string;
}

export interface Because {
  /** One sentence per piece of the option. */
  readonly pieces: readonly string[];
  readonly outcomes: readonly WishOutcome[];
}

/** @param option - undefined when the layer is unserved. */
export function becauseOf<Spec extends LayerSpec, Rule extends Rules>(
  option: Option<Spec, Rule> | undefined,
  candidates: readonly Candidate<Spec, Rule>[],
  refused: readonly RuleRefusal[],
  { wishes }: PreferenceChain,
  displaced: string | undefined,
): Because {
  const granted = option === undefined ? Infinity : option.lead.wish;
  const outcomes: WishOutcome[] = wishes
    .filter((_, index) => index <= granted)
    .map((preference, index) => ({
      preference,
      isGranted: index === granted,
      reason: index === granted ? '' : whyNot(preference.backend, refused),
    }));
  if (option === undefined) return { pieces: [], outcomes };

  const { lead } = option;
  const fallenThrough = outcomes
    .filter(({ isGranted }) => !isGranted)
    .map(
      ({ preference, reason }) =>
        `; ${describeSource(preference.source)} prefers ${preference.backend}, which does not serve it: ${reason}`,
    )
    .join('');
  const pieces = option.pieces.map(({ candidate }) => {
    const wish = wishes[candidate.wish];
    const named =
      wish === undefined ? undefined : `${wish.effect === 'require' ? 'required' : 'preferred'} by ${describeSource(wish.source)}`;
    if (candidate !== lead) return `${named === undefined ? '' : `${named}; `}takes the calls that ${lead.backend}/${lead.rule} does not`;
    return `${named ?? rankOf(option, candidates, displaced)}${fallenThrough}`;
  });
  return { pieces, outcomes };
}

function rankOf<Spec extends LayerSpec, Rule extends Rules>(
  { lead }: Option<Spec, Rule>,
  candidates: readonly Candidate<Spec, Rule>[],
  displaced: string | undefined,
): string {
  if (candidates.length === 1) return 'the only rule that covers it';
  const first = candidates[0];
  const standing = lead.measured === undefined ? `priority ${lead.priority}` : `measured (${lead.measured.at.slice(0, 10)})`;
  if (displaced !== undefined) return `${standing}; ${displaced} comes first, but with it the plan does not fit into memory`;
  if (first !== undefined && first !== lead) {
    return `${standing}; ${ruleName(first)} comes first, but takes calls of ${first.min} to ${first.max} tokens only and would keep the weights twice`;
  }
  const measured = whyMeasuredFirst(candidates);
  if (measured !== undefined) return measured;
  const ties = candidates.filter(({ priority }) => priority === lead.priority).length;
  const tie = ties > 1 ? ' (first by name among equals)' : '';
  return `priority ${lead.priority}, the highest of ${candidates.length} rules that cover it${tie}`;
}

/** The reasons of the backend's nearest miss. */
function whyNot(backend: string, refused: readonly RuleRefusal[]): string {
  const nearest = nearestMiss(refused.filter((one) => one.backend === backend));
  if (nearest === undefined) return 'no backend of that name is installed for this kind of layer';
  return nearest.reasons.map(({ message }) => message.replace(/\.$/, '')).join('; ');
}

/**
 * The refusal with the fewest reasons; the first by rule among equals. Where no rule of its backend runs the scheme, the reason names the schemes
 * of all of them: what one rule runs would be half of the truth.
 */
export function nearestMiss(refused: readonly RuleRefusal[]): RuleRefusal | undefined {
  let nearest: RuleRefusal | undefined;
  for (const one of refused) if (nearest === undefined || one.reasons.length < nearest.reasons.length) nearest = one;
  if (nearest === undefined) return undefined;
  const { backend, reasons } = nearest;
  const byRule = refused.filter((one) => one.backend === backend).map((one) => one.reasons.find(({ dimension }) => dimension === 'scheme'));
  const own = reasons.find(({ dimension }) => dimension === 'scheme');
  if (own === undefined || byRule.includes(undefined)) return nearest;
  const supported = [...new Set(byRule.flatMap((reason) => textsOf(reason?.required)))];
  const merged = schemeRefusal(textsOf(own.actual), supported);
  return merged === undefined ? nearest : { ...nearest, reasons: reasons.map((reason) => (reason === own ? merged : reason)) };
}

function textsOf(value: unknown): readonly string[] {
  return (Array.isArray(value) ? value : [value]).filter((one) => typeof one === 'string');
}

/** What {@link noticesOf} reads of a decided class of layers. */
interface DecidedClass {
  readonly layers: readonly LayerSpec[];
  readonly schemes: readonly SchemeKey[];
  readonly bindings: readonly Binding[];
  readonly eligible: readonly Pick<Binding, 'backend'>[];
  readonly outcomes: readonly WishOutcome[];
}

/** One sentence for every setting that names nobody, matches nothing, or fell through somewhere. */
export function noticesOf(
  preferences: readonly RankedPreference[],
  classes: readonly DecidedClass[],
  request: PlanRequest,
): readonly string[] {
  return preferences.flatMap((ranked) => {
    const { preference } = ranked;
    const notices: string[] = [];
    const { backend, scope } = preference;
    const says = describeSource(preference.source);
    const registry = [...(scope.kind === 'linear' ? [] : request.moeBackends), ...(scope.kind === 'moe' ? [] : request.linearBackends)];
    const installed = [...new Set(registry.map(({ name }) => name))].sort();
    if (preference.effect !== 'auto' && !installed.includes(backend)) {
      const serving = classes
        .filter(({ layers, schemes }) => layers.some((spec) => isInScope(spec, schemes, ranked)))
        .flatMap(({ bindings, eligible }) => [...bindings, ...eligible].map((one) => one.backend));
      const others =
        serving.length === 0 || preference.effect === 'forbid'
          ? `installed: ${listOf(installed)}`
          : `these would serve: ${listOf([...new Set(serving)].sort())}`;
      notices.push(`${says}: no plugin with a backend named ${backend} is installed; ${others}.`);
    }
    if (!classes.some(({ layers, schemes }) => layers.some((spec) => isInScope(spec, schemes, ranked)))) {
      notices.push(`${says}: matches no layer of this model.`);
    }
    if (preference.effect !== 'prefer') return notices;

    const passed = classes
      .map((one) => ({ ...one, outcome: one.outcomes.find((outcome) => outcome.preference === preference) }))
      .filter(({ outcome }) => outcome !== undefined);
    const missed = passed.filter(({ outcome }) => outcome?.isGranted === false);
    if (missed.length === 0) return notices;
    const count = (some: readonly DecidedClass[]) => some.reduce((sum, { layers }) => sum + layers.length, 0);
    const where = missed.map(({ layers, schemes, bindings, outcome }) => {
      const takers = [...new Set(bindings.map((binding) => binding.backend))];
      const taker = takers.length === 0 ? 'unserved' : `served by ${listOf(takers)} instead`;
      const spec = layers[0];
      const what = spec === undefined ? '' : `${spec.role === 'draft' ? 'draft ' : ''}${spec.kind === 'moe' ? 'experts' : 'linear'}`;
      return `${layers.length} × ${what} ${schemes.join('+')}, ${taker} (${outcome?.reason ?? ''})`;
    });
    // Several classes of one scheme often share a reason; saying it once is enough.
    const distinct = [...new Set(where)].sort();
    notices.push(
      `${says}: ${backend} does not serve ${count(missed)} of the ${count(passed)} layers it was asked for: ${distinct.join('; ')}.`,
    );
    return notices;
  });
}
