import type { SupportRule } from '../backend.js';
import type { LayerSpec } from '../layer-spec.js';
import type { SchemeKey } from '../quant/quant-scheme.js';
import type { Candidate } from './evaluate.js';
import { compareNumbers } from './order.js';
import type { LayerBytes } from './plan-types.js';

type Rules = SupportRule<SchemeKey>;

/** One way to serve a layer: kernels side by side that together take every call from 1 to maxNumTokens tokens. */
export interface Option<Spec extends LayerSpec, Rule extends Rules> {
  /** By tokens, ascending. */
  readonly pieces: readonly Piece<Spec, Rule>[];
  /** The candidate that the option is about; the other pieces fill what it leaves. */
  readonly lead: Candidate<Spec, Rule>;
  readonly bytes: LayerBytes;
}

export interface Piece<Spec extends LayerSpec, Rule extends Rules> {
  readonly candidate: Candidate<Spec, Rule>;
  readonly min: number;
  readonly max: number;
}

/**
 * Every candidate leads one option; best first. Among candidates that the same preference (or none) names, those that need one weight layout come
 * before those that would keep the weights twice: speed of one more kernel is not worth a second copy that nobody asked for.
 *
 * @param candidates - best first.
 * @returns empty when some number of tokens is covered by nobody.
 */
export function optionsOf<Spec extends LayerSpec, Rule extends Rules>(
  candidates: readonly Candidate<Spec, Rule>[],
  maxNumTokens: number,
): readonly Option<Spec, Rule>[] {
  const options = candidates.flatMap((lead) => {
    const pieces = composeAround(lead, candidates, maxNumTokens);
    return pieces === undefined ? [] : [{ pieces, lead, bytes: bytesOf(pieces) }];
  });
  const rank = new Map(options.map((option, index) => [option, index]));
  const isDouble = ({ pieces }: Option<Spec, Rule>) => Number(layoutsOf(pieces).size > 1);
  return options.sort(
    (a, b) => compareNumbers(a.lead.wish, b.lead.wish) || isDouble(a) - isDouble(b) || (rank.get(a) ?? 0) - (rank.get(b) ?? 0),
  );
}

/** The first number of tokens, from 1 to maxNumTokens, that no candidate takes, with the end of that gap. */
export function firstGap<Spec extends LayerSpec, Rule extends Rules>(
  candidates: readonly Candidate<Spec, Rule>[],
  maxNumTokens: number,
): { readonly min: number; readonly max: number } | undefined {
  let covered = 0;
  for (const { min, max } of [...candidates].sort((a, b) => a.min - b.min)) {
    if (min > covered + 1) return { min: covered + 1, max: min - 1 };
    covered = Math.max(covered, max);
  }
  return covered >= maxNumTokens ? undefined : { min: covered + 1, max: maxNumTokens };
}

function composeAround<Spec extends LayerSpec, Rule extends Rules>(
  lead: Candidate<Spec, Rule>,
  candidates: readonly Candidate<Spec, Rule>[],
  maxNumTokens: number,
): readonly Piece<Spec, Rule>[] | undefined {
  const layouts = new Set([lead.supportRule.layout]);
  const fill = (from: number, to: number): Piece<Spec, Rule>[] | undefined => {
    const pieces: Piece<Spec, Rule>[] = [];
    for (let start = from; start <= to;) {
      const next = bestFrom(start, to, candidates, layouts);
      if (next === undefined) return undefined;
      layouts.add(next.supportRule.layout);
      pieces.push({ candidate: next, min: start, max: Math.min(to, next.max) });
      start = next.max + 1;
    }
    return pieces;
  };
  const below = fill(1, lead.min - 1);
  const above = fill(lead.max + 1, maxNumTokens);
  if (below === undefined || above === undefined) return undefined;
  return [...below, { candidate: lead, min: lead.min, max: lead.max }, ...above];
}

/** Whoever takes `start` tokens: named by a preference first, then of a layout that is there anyway, then reaching the end, then by rank. */
function bestFrom<Spec extends LayerSpec, Rule extends Rules>(
  start: number,
  end: number,
  candidates: readonly Candidate<Spec, Rule>[],
  layouts: ReadonlySet<string>,
): Candidate<Spec, Rule> | undefined {
  let best: Candidate<Spec, Rule> | undefined;
  for (const candidate of candidates) {
    if (candidate.min > start || candidate.max < start) continue;
    if (best === undefined) {
      best = candidate;
      continue;
    }
    const difference =
      compareNumbers(candidate.wish, best.wish) ||
      Number(layouts.has(best.supportRule.layout)) - Number(layouts.has(candidate.supportRule.layout)) ||
      Number(best.max >= end) - Number(candidate.max >= end);
    if (difference < 0) best = candidate;
  }
  return best;
}

function layoutsOf<Spec extends LayerSpec, Rule extends Rules>(pieces: readonly Piece<Spec, Rule>[]): Map<string, Candidate<Spec, Rule>> {
  const layouts = new Map<string, Candidate<Spec, Rule>>();
  for (const { candidate } of pieces) if (!layouts.has(candidate.supportRule.layout)) layouts.set(candidate.supportRule.layout, candidate);
  return layouts;
}

/** Kernels of one layout share the packed weights, so a layout counts once. */
function bytesOf<Spec extends LayerSpec, Rule extends Rules>(pieces: readonly Piece<Spec, Rule>[]): LayerBytes {
  let residentBytes = 0;
  let preparePeakBytes = 0;
  for (const { footprint } of layoutsOf(pieces).values()) {
    residentBytes += footprint.residentBytes;
    preparePeakBytes = Math.max(preparePeakBytes, footprint.preparePeakBytes);
  }
  const workspaceBytes = Math.max(...pieces.map(({ candidate, max }) => candidate.footprint.workspaceBytes(max)));
  return { residentBytes, preparePeakBytes, workspaceBytes };
}
