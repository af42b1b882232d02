/** What was measured on this machine, and how it ranks rules that cover a layer. */
import type { LayerSpec } from '../layer-spec.js';
import { linearKind, moeKind } from './layer-kind.js';
import { compareNumbers, compareText } from './order.js';
import { canonicalJson } from './plan-hash.js';

/** Times of the rules that cover one class of layers, as `moe-server calibrate` took them. */
export interface MeasuredClass {
  /** As {@link layerClassOf} makes it. */
  readonly layerClass: string;
  /** ISO 8601 date and time. */
  readonly measuredAt: string;
  readonly times: readonly MeasuredTime[];
}

export interface MeasuredTime {
  readonly backend: string;
  readonly rule: string;
  /** Tokens of the call. */
  readonly numTokens: number;
  /** Of one call on one layer, in microseconds. */
  readonly medianUs: number;
  /** Half the distance between the quartiles; left out = not known, and counted as none. */
  readonly spreadUs?: number;
  /** In proportion to a call with fewer tokens that was too slow to go on: never better than the truth by much, and far from the best. */
  readonly isEstimate?: boolean;
}

/** What measuring says of one rule for one layer. */
export interface MeasuredCost {
  /** See {@link measuredCosts}. */
  readonly costUs: number;
  /** The same sum over the spreads of the times. */
  readonly spreadUs: number;
  /** ISO 8601 date and time. */
  readonly at: string;
}

/** Calls of up to so many tokens stand for decode, larger ones for prefill. */
const maxDecodeTokens = 16;
/** Prompt tokens for every generated one: a chat's question and its history are longer than the answer. */
const promptTokensPerGenerated = 3;
/** Costs that differ by less are equal, however steady the times were: the next start of the machine differs by as much. */
const tolerance = 0.03;

/**
 * Layers of one class take the same time with the same kernel: equal in all that rules look at, whatever their name, place and role. A linear
 * outside the decoder layers is a class of its own, because it sees only the tokens whose logits somebody wants.
 */
export function layerClassOf(spec: LayerSpec): string {
  if (spec.kind === 'moe') return canonicalJson(moeKind.shape({ ...spec, role: 'target' }));
  return canonicalJson([linearKind.shape({ ...spec, role: 'target' }), seesLogitRowsOnly(spec) ? 'logits' : 'tokens']);
}

/** Whether calls of this layer bring at most one token of each sequence. */
function seesLogitRowsOnly(spec: LayerSpec): boolean {
  return spec.kind === 'linear' && spec.layerIndex === undefined;
}

/** A rule and the tokens of one call that it takes. */
export interface TimedRule {
  readonly backend: string;
  readonly rule: string;
  readonly min: number;
  readonly max: number;
}

/**
 * The cost of each rule: microseconds that one layer takes for a generated token and the prompt tokens that come with it,
 *
 *     mean over decode sizes (time / tokens) + 3 * mean over prefill sizes (time / tokens)
 *
 * where calls of up to 16 tokens are decode and larger ones prefill; layers that see only logit rows have no prefill. At a size that a rule
 * does not take, the fastest other rule counts in its place, as in the plan others fill what it leaves.
 *
 * @returns by {@link ruleName}; a rule that was not measured at every size it takes is left out.
 */
export function measuredCosts(
  rules: readonly TimedRule[],
  spec: LayerSpec,
  { times, measuredAt }: MeasuredClass,
  maxNumTokens: number,
): ReadonlyMap<string, MeasuredCost> {
  const byRule = new Map(rules.map((one) => [ruleName(one), new Map<number, Time>()]));
  const fastest = new Map<number, Time>();
  for (const time of times) {
    const { numTokens, medianUs, spreadUs = 0 } = time;
    const own = byRule.get(ruleName(time));
    const isUsable = Number.isFinite(medianUs + spreadUs) && medianUs > 0 && numTokens <= maxNumTokens;
    if (own === undefined || !isUsable) continue;
    own.set(numTokens, { medianUs, spreadUs });
    const best = fastest.get(numTokens);
    if (best === undefined || medianUs < best.medianUs) fastest.set(numTokens, { medianUs, spreadUs });
  }
  // In order, so that sums round alike whatever the order of the times.
  const sizes = [...fastest.keys()].sort((a, b) => a - b);
  const prefill = seesLogitRowsOnly(spec) ? [] : sizes.filter((size) => size > maxDecodeTokens);
  const decode = sizes.filter((size) => !prefill.includes(size));
  const costs = new Map<string, MeasuredCost>();
  for (const one of rules) {
    const own = byRule.get(ruleName(one));
    if (own === undefined || own.size === 0) continue;
    const timeAt = (size: number): Time | undefined => (one.min <= size && size <= one.max ? own : fastest).get(size);
    const sum = (part: 'medianUs' | 'spreadUs'): number => {
      const perToken = (size: number): number => (timeAt(size)?.[part] ?? Number.NaN) / size;
      return mean(decode.map(perToken)) + promptTokensPerGenerated * mean(prefill.map(perToken));
    };
    const costUs = sum('medianUs');
    if (!Number.isNaN(costUs)) costs.set(ruleName(one), { costUs, spreadUs: sum('spreadUs'), at: measuredAt });
  }
  return costs;
}

/** What is summed of a {@link MeasuredTime}. */
type Time = Required<Pick<MeasuredTime, 'medianUs' | 'spreadUs'>>;

/** As messages and tables name a rule. */
export function ruleName({ backend, rule }: { readonly backend: string; readonly rule: string }): string {
  return `${backend}/${rule}`;
}

/** What ranking looks at. */
export interface RankedRule {
  readonly backend: string;
  readonly rule: string;
  readonly priority: number;
  /** Position of the first preference that names the backend; Infinity = nobody did. */
  readonly wish: number;
  readonly measured?: MeasuredCost;
}

/**
 * Best first: who is wished for; then measured rules by cost, those as fast as the fastest by priority among themselves; then rules that were
 * not measured, by priority; names at last. A total order, so that the order of registration cannot show.
 */
export function rankRules<T extends RankedRule>(rules: readonly T[]): T[] {
  const best = new Map<number, MeasuredCost>();
  for (const { wish, measured } of rules) {
    if (measured !== undefined) best.set(wish, cheaper(measured, best.get(wish) ?? measured));
  }
  const standing = ({ wish, measured }: T): number => {
    if (measured === undefined) return Infinity;
    return isAsFast(measured, best.get(wish) ?? measured) ? 0 : measured.costUs;
  };
  return [...rules].sort(
    (a, b) =>
      compareNumbers(a.wish, b.wish) ||
      compareNumbers(standing(a), standing(b)) ||
      b.priority - a.priority ||
      compareText(a.backend, b.backend) ||
      compareText(a.rule, b.rule),
  );
}

/** Whether a cost counts as equal to the lowest: it is within a few per cent of it, or within what its times vary by. */
export function isAsFast({ costUs }: MeasuredCost, best: MeasuredCost): boolean {
  return costUs - best.costUs <= Math.max(tolerance * best.costUs, best.spreadUs);
}

/** Of equal costs the one that varies more, so that the order of rules does not matter. */
function cheaper(a: MeasuredCost, b: MeasuredCost): MeasuredCost {
  return a.costUs < b.costUs || (a.costUs === b.costUs && a.spreadUs > b.spreadUs) ? a : b;
}

/**
 * Why the first of ranked rules is the first, where it was measured; undefined where it was not.
 *
 * @param ranked - as {@link rankRules} orders them.
 */
export function whyMeasuredFirst(ranked: readonly RankedRule[]): string | undefined {
  const [first] = ranked;
  if (first?.measured === undefined) return undefined;
  const { measured } = first;
  const date = measured.at.slice(0, 10);
  const others = ranked.slice(1).filter(({ wish }) => wish === first.wish);
  let rival: (RankedRule & { readonly measured: MeasuredCost }) | undefined;
  for (const one of others) {
    if (one.measured !== undefined && (rival === undefined || one.measured.costUs < rival.measured.costUs))
      rival = { ...one, measured: one.measured };
  }
  if (rival === undefined) return `the only one of ${ranked.length} rules that was measured (${date})`;
  const best = cheaper(measured, rival.measured);
  if (isAsFast(best === measured ? rival.measured : measured, best))
    return `measured as fast as ${ruleName(rival)} (${date}), and priority ${first.priority} puts it first`;
  return `measured ${formatRatio(rival.measured.costUs / measured.costUs)} times as fast as ${ruleName(rival)} (${date})`;
}

function formatRatio(ratio: number): string {
  return ratio < 10 ? ratio.toFixed(2).replace(/0$/, '') : ratio.toFixed(0);
}

/** 0 of nothing: a size that nobody measured has no part in any cost. */
function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
}
