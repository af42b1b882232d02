import type { CpuRates } from '@moe-server/engine';
import type { RemoteContestant } from './remote-contestant.js';
import { reachedOf } from './figures.js';
import type { Figure, Floor, Result, Workload } from './figures.js';

/** Who is compared: this project's engine in each class of numerics, and the others. */
export interface Sides {
  readonly ours: readonly string[];
  readonly peers: readonly string[];
}

/** One of ours against the others at one workload. */
export interface Ratios {
  /** Against each, by name. */
  readonly byPeer: Readonly<Record<string, number>>;
  /** Against whoever was the fastest; undefined without peers. */
  readonly toFastest: { readonly name: string; readonly ratio: number } | undefined;
}

/** How many times as fast `ours` is. */
export function ratiosOf({ results }: Figure, ours: string, { peers }: Sides): Ratios {
  const own = rateOf(results, ours);
  const byPeer = Object.fromEntries(peers.map((name) => [name, own / rateOf(results, name)]));
  const [fastest] = [...peers].sort((a, b) => rateOf(results, b) - rateOf(results, a));
  const toFastest = fastest === undefined ? undefined : { name: fastest, ratio: byPeer[fastest] ?? NaN };
  return { byPeer, toFastest };
}

/** The width of engine names is the report's only unknown. */
export class TextReport {
  readonly #sides: Sides;
  readonly #widths: readonly number[];

  constructor(sides: Sides) {
    this.#sides = sides;
    const names = [...sides.ours, ...sides.peers, 'engine'];
    this.#widths = [28, Math.max(...names.map(({ length }) => length)) + 2, 10, 10, 14];
  }

  get heading(): string {
    return this.#row(['workload', 'engine', 'tokens/s', 'of floor', 'min–max']);
  }

  /** One line per engine, then one for each of ours with the ratios, and one with what the floor was made from. */
  figure(figure: Figure): string[] {
    const lines = figure.results.map((result, i) => {
      const { tokensPerSecond, name, numDropped } = result;
      const reached = reachedOf(result);
      return this.#row([
        i === 0 ? titleOf(figure.workload) : '',
        name,
        rateText(tokensPerSecond.median),
        reached === undefined ? '' : percent(reached),
        `${rateText(tokensPerSecond.min)}–${rateText(tokensPerSecond.max)}${numDropped === 0 ? '' : `, ${String(numDropped)} disturbed`}`,
      ]);
    });
    const notes = [
      ...this.#sides.ours.flatMap((name) => this.#ratioNote(figure, name)),
      ...floorNotes(figure),
      // Half a tenth of a processor is what an idle system uses.
      ...(figure.foreign !== undefined && figure.foreign > 0.05 ? [`other programs used ${figure.foreign.toFixed(2)} processors`] : []),
    ];
    return [...lines, ...notes.map((note) => `    ${note}`)];
  }

  #ratioNote(figure: Figure, ours: string): string[] {
    const { byPeer, toFastest } = ratiosOf(figure, ours, this.#sides);
    if (toFastest === undefined) return [];
    const parts = Object.entries(byPeer).map(
      ([name, ratio]) =>
        `${ratio.toFixed(2)} times ${name}${this.#sides.peers.length > 1 && name === toFastest.name ? ' (the fastest)' : ''}`,
    );
    return [`${ours}: ${parts.join(', ')}`];
  }

  #row(cells: readonly string[]): string {
    return cells
      .map((cell, i) => cell.padEnd(this.#widths[i] ?? 0))
      .join('')
      .trimEnd();
  }
}

/** What each of ours had to read or multiply; said once where classes of numerics do not differ. */
function floorNotes({ results, rates, workload }: Figure): string[] {
  const notes = new Map<string, string[]>();
  for (const { name, floor } of results) {
    if (floor === undefined) continue;
    const note = floorText(floor, workload, rates);
    notes.set(note, [...(notes.get(note) ?? []), name]);
  }
  return [...notes].map(([note, names]) => (notes.size === 1 ? note : `${names.join(', ')}: ${note}`));
}

/** `12.1 MB a step, 96.0 experts in it, over 33.1 and 32.9 GB/s = 2720 tokens/s`. */
export function floorText(floor: Floor, workload: Workload, rates: readonly [CpuRates, CpuRates]): string {
  const both = (read: (of: CpuRates) => number | undefined, digits: number): string =>
    rates.map((of) => (read(of) ?? 0).toFixed(digits)).join(' and ');
  if (floor.bound === 'memory') {
    return (
      `${(floor.bytesPerStep / 1e6).toFixed(1)} MB a step, ${floor.expertsPerStep.toFixed(1)} experts in it, over ` +
      `${both(({ bandwidth }) => bandwidth, 1)} GB/s (before, after) = ${rateText(floor.tokensPerSecond)} tokens/s`
    );
  }
  const numTokens = workload.type === 'prefill' ? workload.numTokens : 1;
  const parts = (['int8', 'bf16', 'f32'] as const)
    .filter((type) => floor.operations[type] > 0)
    .map(
      (type) =>
        `${(floor.operations[type] / numTokens / 1e9).toFixed(3)} Gop ${type} over ${both(({ dots }) => dots[type] ?? dots.f32, 0)} Gop/s`,
    );
  return `a token: ${parts.join(', ')} (before, after) = ${rateText(floor.tokensPerSecond)} tokens/s`;
}

/** `moe-server auto: modelopt MIXED_PRECISION, cpu/bf16-avx512 x 1, …, loaded in 0.2 s`. */
export function factsText({ name, facts }: Pick<RemoteContestant, 'name' | 'facts'>): string {
  return `${name}: ${facts.details.join(', ')}, loaded in ${facts.loadSeconds.toFixed(1)} s`;
}

/** `prefill 512`, `decode at 128`, `decode at 128, 4 sequences`. */
export function titleOf(workload: Workload): string {
  if (workload.type === 'prefill') return `prefill ${String(workload.numTokens)}`;
  const { contextLength, numSequences } = workload;
  return `decode at ${String(contextLength)}${numSequences > 1 ? `, ${String(numSequences)} sequences` : ''}`;
}

export function rateText(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
}

export function percent(value: number): string {
  return `${(100 * value).toFixed(0)} %`;
}

function rateOf(results: readonly Result[], name: string): number {
  return results.find((result) => result.name === name)?.tokensPerSecond.median ?? NaN;
}
