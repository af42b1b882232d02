import { describeCpuRates } from '@moe-server/engine';
import type { CpuRates } from '@moe-server/engine';
import type { ContestantFacts } from './contestant.js';
import { reachedOf } from './figures.js';
import type { Figure } from './figures.js';
import type { Machine } from './machine.js';
import { factsText, floorText, percent, ratiosOf, rateText, titleOf } from './report.js';
import type { Sides } from './report.js';

/** Everything that one call measured; what `--json` writes. */
export interface Measurement {
  readonly machine: Machine;
  /** Of one thread, and of as many as ran. */
  readonly rates: readonly CpuRates[];
  readonly model: { readonly name: string; readonly weightBytes: number };
  readonly numThreads: number;
  readonly numRuns: number;
  readonly contestants: readonly { readonly name: string; readonly facts: ContestantFacts; readonly peakBytes: number | undefined }[];
  readonly figures: readonly Figure[];
}

/** The measurement as a section of a document: machine, engines, figures, ratios, and what the floors were made from. */
export function markdownOf(measurement: Measurement, sides: Sides): string {
  const { machine, rates, model, numThreads, numRuns, contestants, figures } = measurement;
  const names = [...sides.ours, ...sides.peers];
  const speeds = figures.map((figure) => [
    titleOf(figure.workload),
    ...figure.results.map((result) => {
      const reached = reachedOf(result);
      return `${rateText(result.tokensPerSecond.median)}${reached === undefined ? '' : ` (${percent(reached)})`}`;
    }),
  ]);
  const ratios = figures.map((figure) => [
    titleOf(figure.workload),
    ...sides.ours.flatMap((name) => {
      const { byPeer, toFastest } = ratiosOf(figure, name, sides);
      const each = sides.peers.map((peer) => (byPeer[peer] ?? NaN).toFixed(2));
      return each.length > 1 && toFastest !== undefined ? [...each, toFastest.ratio.toFixed(2)] : each;
    }),
  ]);
  const opponents = sides.peers.length > 1 ? [...sides.peers, 'fastest'] : sides.peers;
  const ratioHeads = sides.ours.flatMap((name) => opponents.map((peer) => `${name} : ${peer}`));
  return [
    `### ${model.name}`,
    '',
    `${machine.processor}, ${String(machine.processors)} processors, ${String(machine.memoryGiB)} GiB, Linux ${machine.kernel}, Node ${machine.node}, commit ` +
      `${machine.commit ?? 'unknown'}, ${machine.date.slice(0, 10)}. ${String(numThreads)} threads, medians of ${String(numRuns)} runs; ` +
      `${(model.weightBytes / 1e6).toFixed(0)} MB of weights.`,
    '',
    ...rates.map((of) => `- ${describeCpuRates(of)}`),
    ...contestants.map(
      (one) => `- ${factsText(one)}${one.peakBytes === undefined ? '' : `, at most ${(one.peakBytes / 1e6).toFixed(0)} MB`}`,
    ),
    '',
    'Tokens per second, in brackets the part of the floor:',
    '',
    ...table(['', ...names], speeds),
    ...(sides.peers.length === 0 ? [] : ['', 'Times as fast:', '', ...table(['', ...ratioHeads], ratios)]),
    '',
    'Floors, and runs that others disturbed and that were run again:',
    '',
    ...table(['', 'engine', 'floor', 'disturbed'], figures.flatMap(floorRows)),
    '',
  ].join('\n');
}

function floorRows({ workload, results, rates }: Figure): string[][] {
  return results.map(({ name, floor, numDropped }) => [
    titleOf(workload),
    name,
    floor === undefined ? '' : floorText(floor, workload, rates),
    String(numDropped),
  ]);
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const line = (cells: readonly string[]): string => `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  return [line(head), line(head.map((_, i) => (i === 0 ? '---' : '--:'))), ...rows.map(line)];
}
