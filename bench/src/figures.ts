import type { ActiveBytes } from './active-bytes.js';
import type { RemoteContestant } from './remote-contestant.js';
import { readBandwidth, withForeignLoad } from './machine.js';
import type { QuietWaiter } from './machine.js';

/** One thing to measure. */
export type Workload =
  | { readonly type: 'prefill'; readonly numTokens: number }
  | { readonly type: 'decode'; readonly contextLength: number; readonly numTokens: number; readonly numSequences: number };

export interface Summary {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

/** What came out for one workload. */
export interface Figure {
  readonly workload: Workload;
  /** Tokens per second by contestant; several sequences together. */
  readonly tokensPerSecond: Readonly<Record<string, Summary>>;
  /** GB/s, before and after. */
  readonly bandwidth: readonly [number, number];
  /** Decode of one sequence: bytes that a token must read, tokens per second if memory were the only limit, and how much of it was reached. */
  readonly floor?: { readonly bytesPerToken: number; readonly tokensPerSecond: number; readonly reached: Readonly<Record<string, number>> };
  /** Processors that other programs used during the runs, median. */
  readonly foreign: number | undefined;
}

/** Runs a workload on every contestant in turn, again and again, so that what changes on the machine meets all alike; the first round does not count. */
export async function measure(
  workload: Workload,
  contestants: readonly RemoteContestant[],
  bytes: ActiveBytes,
  options: { readonly numRuns: number; readonly numThreads: number; readonly quiet: QuietWaiter },
): Promise<Figure> {
  const rates = new Map<string, number[]>(contestants.map(({ kind }) => [kind, []]));
  const foreign: number[] = [];
  const pids = [process.pid, ...contestants.map(({ pid }) => pid)];
  for (const contestant of contestants) await runOnce(contestant, workload);
  await options.quiet.wait(pids);
  const before = await readBandwidth(options.numThreads);
  for (let run = 0; run < options.numRuns; run++) {
    for (const contestant of contestants) {
      await options.quiet.wait(pids);
      const timed = await withForeignLoad(pids, () => runOnce(contestant, workload));
      rates.get(contestant.kind)?.push(timed.value);
      if (timed.foreign !== undefined) foreign.push(timed.foreign);
    }
  }
  const after = await readBandwidth(options.numThreads);
  const tokensPerSecond = Object.fromEntries([...rates].map(([kind, values]) => [kind, summarize(values)]));
  const figure = {
    workload,
    tokensPerSecond,
    bandwidth: [before, after] as const,
    foreign: foreign.length === 0 ? undefined : median(foreign),
  };
  if (workload.type === 'prefill' || workload.numSequences > 1) return figure;
  const bytesPerToken = bytes.perToken + bytes.kvPerPosition * (workload.contextLength + workload.numTokens / 2);
  const floor = (((before + after) / 2) * 1e9) / bytesPerToken;
  const reached = Object.fromEntries(Object.entries(tokensPerSecond).map(([kind, summary]) => [kind, summary.median / floor]));
  return { ...figure, floor: { bytesPerToken, tokensPerSecond: floor, reached } };
}

/** Tokens per second of one run. */
async function runOnce(contestant: RemoteContestant, workload: Workload): Promise<number> {
  if (workload.type === 'prefill') return workload.numTokens / (await contestant.prefill(workload.numTokens));
  const { contextLength, numTokens, numSequences } = workload;
  return (numTokens * numSequences) / (await contestant.decode(contextLength, numTokens, numSequences));
}

function summarize(values: readonly number[]): Summary {
  return { median: median(values), min: Math.min(...values), max: Math.max(...values) };
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? NaN;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? NaN)) / 2;
}
