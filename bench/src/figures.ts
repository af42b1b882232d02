import { dotRate, measureCpuRates } from '@moe-server/engine';
import type { CpuRates } from '@moe-server/engine';
import type { QuietGuard } from './machine.js';
import { stepBytes } from './model-bytes.js';
import type { ModelBytes } from './model-bytes.js';
import { operationsOf } from './prompt-operations.js';
import type { Operations } from './prompt-operations.js';
import type { RemoteContestant } from './remote-contestant.js';

/** One thing to measure. */
export type Workload =
  | { readonly type: 'prefill'; readonly numTokens: number }
  | { readonly type: 'decode'; readonly contextLength: number; readonly numTokens: number; readonly numSequences: number };

export interface Summary {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

/** What a workload would reach if the machine did nothing but what it must, at the rates of the same minute. */
export type Floor =
  /** Decode: everything that a step reads, once. */
  | { readonly bound: 'memory'; readonly bytesPerStep: number; readonly expertsPerStep: number; readonly tokensPerSecond: number }
  /** Prefill: every product at the rate of what is multiplied. */
  | { readonly bound: 'products'; readonly operations: Operations; readonly tokensPerSecond: number };

/** One contestant at one workload. */
export interface Result {
  readonly name: string;
  /** Several sequences together. */
  readonly tokensPerSecond: Summary;
  /** This project's engine only: of others it is not known what they multiply, and which experts were chosen. */
  readonly floor: Floor | undefined;
  /** Runs that other programs disturbed; they were thrown away and run again. */
  readonly numDropped: number;
}

/** What came out for one workload. */
export interface Figure {
  readonly workload: Workload;
  readonly results: readonly Result[];
  /** Of the machine, just before and just after. */
  readonly rates: readonly [CpuRates, CpuRates];
  /** Processors that other programs used during the runs that count, median. */
  readonly foreign: number | undefined;
}

/** The part of the floor that was reached, 0 to 1. */
export function reachedOf({ tokensPerSecond, floor }: Result): number | undefined {
  return floor === undefined ? undefined : tokensPerSecond.median / floor.tokensPerSecond;
}

/** Most tries of one run beside those that were asked for; what is never quiet would else never end where the budget is large. */
const maxDropped = 20;

interface Tally {
  readonly contestant: RemoteContestant;
  readonly rates: number[];
  readonly experts: number[];
  numDropped: number;
}

/** Runs a workload on every contestant in turn, again and again, so that what changes on the machine meets all alike; the first round does not count. */
export async function measure(
  workload: Workload,
  contestants: readonly RemoteContestant[],
  bytes: ModelBytes,
  options: { readonly numRuns: number; readonly numThreads: number; readonly quiet: QuietGuard; readonly onRun: () => void },
): Promise<Figure> {
  const { numRuns, numThreads, quiet, onRun } = options;
  const tallies = contestants.map((contestant): Tally => ({ contestant, rates: [], experts: [], numDropped: 0 }));
  const foreign: number[] = [];
  for (const contestant of contestants) {
    await runOnce(contestant, workload);
    onRun();
  }
  await quiet.wait([process.pid]);
  const before = await measureCpuRates({ numThreads });
  for (let run = 0; run < numRuns; run++) {
    for (const tally of tallies) {
      await runCounted(tally, workload, quiet, foreign);
      onRun();
    }
  }
  const after = await measureCpuRates({ numThreads });
  const results = tallies.map(({ contestant, rates, experts, numDropped }) => ({
    name: contestant.name,
    tokensPerSecond: summarize(rates),
    floor: floorOf(workload, contestant, bytes, experts, [before, after]),
    numDropped,
  }));
  return { workload, results, rates: [before, after], foreign: foreign.length === 0 ? undefined : median(foreign) };
}

async function runCounted(tally: Tally, workload: Workload, quiet: QuietGuard, foreign: number[]): Promise<void> {
  const { contestant, rates, experts } = tally;
  for (;;) {
    // Other contestants are none of this run's own: one that spins while it waits disturbs like any program.
    const run = await quiet.run([process.pid, contestant.pid], () => runOnce(contestant, workload));
    if (!run.counts && tally.numDropped < maxDropped) {
      tally.numDropped += 1;
      continue;
    }
    if (!run.counts)
      throw new Error(
        `Other programs disturbed ${String(maxDropped)} runs of ${contestant.name}: wait for a quiet machine, or say --quiet 0.`,
      );
    rates.push(run.value.tokensPerSecond);
    if (run.value.expertsPerStep !== undefined) experts.push(run.value.expertsPerStep);
    if (run.foreign !== undefined) foreign.push(run.foreign);
    return;
  }
}

async function runOnce(
  contestant: RemoteContestant,
  workload: Workload,
): Promise<{ readonly tokensPerSecond: number; readonly expertsPerStep?: number | undefined }> {
  if (workload.type === 'prefill') return { tokensPerSecond: workload.numTokens / (await contestant.prefill(workload.numTokens)) };
  const { contextLength, numTokens, numSequences } = workload;
  const { seconds, expertsPerStep } = await contestant.decode(contextLength, numTokens, numSequences);
  return { tokensPerSecond: (numTokens * numSequences) / seconds, expertsPerStep };
}

function floorOf(
  workload: Workload,
  { facts }: RemoteContestant,
  bytes: ModelBytes,
  experts: readonly number[],
  rates: readonly [CpuRates, CpuRates],
): Floor | undefined {
  if (workload.type === 'decode') {
    if (experts.length === 0) return undefined;
    const { numSequences, numTokens } = workload;
    const expertsPerStep = experts.reduce((sum, count) => sum + count, 0) / experts.length;
    const contextLength = workload.contextLength + numTokens / 2;
    const bytesPerStep = stepBytes(bytes, { numSequences, contextLength, numExperts: expertsPerStep });
    const bandwidth = 1e9 * mean(rates.map((rate) => rate.bandwidth));
    return { bound: 'memory', bytesPerStep, expertsPerStep, tokensPerSecond: (numSequences * bandwidth) / bytesPerStep };
  }
  if (facts.prompt === undefined) return undefined;
  const operations = operationsOf(facts.prompt, workload.numTokens);
  const types = ['int8', 'bf16', 'f32'] as const;
  const seconds = types.reduce((sum, type) => sum + operations[type] / (1e9 * mean(rates.map((rate) => dotRate(rate, type)))), 0);
  return { bound: 'products', operations, tokensPerSecond: workload.numTokens / seconds };
}

function summarize(values: readonly number[]): Summary {
  return { median: median(values), min: Math.min(...values), max: Math.max(...values) };
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** @param values - not empty. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? NaN;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? NaN)) / 2;
}
