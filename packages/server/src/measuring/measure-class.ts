import { isMoeError, messageOf, Random } from '@moe-server/core';
import type { MeasuredClass, MeasuredTime, PreparedLayer } from '@moe-server/core';
import type { Device } from '@moe-server/engine';
import { KernelBench } from './kernel-bench.js';
import type { MeasurableClass, MeasurableRule } from './layer-classes.js';
import type { CallWork, ClassWork, Trial } from './protocol.js';

/** What measuring one class needs from outside. */
export interface MeasureOptions {
  readonly device: Device;
  /** Packs weights and makes the kernel of one rule; several times where small calls are to find their weights in memory. */
  readonly prepare: (one: MeasurableClass, rule: MeasurableRule) => Promise<Copies>;
  /** Time that one size of one rule should take. */
  readonly sliceMs: number;
  /** What takes longer hangs. */
  readonly callLimitMs: number;
  /** Called before the code of a plugin runs; it runs when this has resolved. */
  readonly onTrying: (trial: Trial, doing: string, limitMs: number) => Promise<void>;
  readonly onFailed: (trial: Trial, reason: string, isKernelFault: boolean) => void;
  /** So many measurements more are done. */
  readonly onProgress: (numMeasurements: number) => void;
}

/** One rule's kernel, prepared once or more; every copy has the same sizes and weights of its own. */
export type Copies = readonly [PreparedLayer, ...PreparedLayer[]];

/** What one class took, and what it had to do. */
export interface ClassTimes {
  readonly measured: MeasuredClass;
  readonly work: ClassWork;
}

const minSliceMs = 1;
/** More than this makes no median steadier. */
const maxSliceMs = 150;
const minRounds = 3;
const maxRounds = 101;
/** A rule so many times slower than the best cannot win; larger calls of it are not worth their time. */
const hopelessRatio = 4;
/** No call is started that should take longer than this. */
const maxCallMs = 2000;
/** Packing reads from disk and may take so many times longer than a call before it counts as hanging. */
const packingFactor = 8;
/** Inputs and routing are the same for every rule and in every run. */
const seed = 20_260_101;

/** A rule whose kernel is ready. */
interface Contender {
  readonly trial: Trial;
  readonly rule: MeasurableRule;
  readonly copies: Copies;
  readonly times: MeasuredTime[];
  isOut: boolean;
}

/** Time for one size of one rule, so that all together keep to a budget. */
export function sliceOf(budgetMs: number, numMeasurements: number): number {
  return Math.min(maxSliceMs, Math.max(minSliceMs, budgetMs / Math.max(1, numMeasurements)));
}

/**
 * Times every rule of a class at every size. Rules take turns, so that whatever else the machine does falls on all of them alike; medians
 * count. A rule that fails is reported and left out.
 */
export async function measureClass(one: MeasurableClass, options: MeasureOptions): Promise<ClassTimes> {
  const contenders: Contender[] = [];
  const calls = new Map<number, CallWork>();
  try {
    for (const rule of one.rules) {
      const { spec, layerClass } = one;
      const trial: Trial = { kind: spec.kind, layerClass, layer: spec.name, backend: rule.backend, rule: rule.rule };
      const copies = await attempt(
        trial,
        'while its weights were packed and its kernel made',
        packingFactor * options.callLimitMs,
        options,
        () => options.prepare(one, rule),
      );
      if (copies !== undefined) contenders.push({ trial, rule, copies, times: [], isOut: false });
    }
    for (const size of one.sizes) {
      const here = contenders.filter(({ rule, isOut }) => !isOut && rule.min <= size && size <= rule.max);
      const work = await measureSize(one, here, size, options);
      if (work !== undefined) calls.set(size, work);
      options.onProgress(here.length);
    }
  } finally {
    for (const { copies } of contenders) for (const layer of copies) layer.dispose();
  }
  const inside = contenders.filter(({ isOut }) => !isOut);
  const numParts = one.spec.kind === 'moe' ? one.spec.experts.length : 1;
  return {
    measured: { layerClass: one.layerClass, measuredAt: new Date().toISOString(), times: inside.flatMap(({ times }) => times) },
    work: {
      calls: [...calls.values()],
      weights: inside.map(({ trial: { backend, rule }, copies: [layer] }) => ({ backend, rule, bytes: layer.residentBytes / numParts })),
      outFeatures: one.spec.kind === 'linear' ? one.spec.outFeatures : undefined,
    },
  };
}

/** @returns what a call of this size has to do; undefined for linears, and when no rule was timed. */
async function measureSize(
  one: MeasurableClass,
  contenders: readonly Contender[],
  numTokens: number,
  options: MeasureOptions,
): Promise<CallWork | undefined> {
  const runs: { readonly contender: Contender; readonly bench: KernelBench; readonly samples: number[] }[] = [];
  const doing = `with ${String(numTokens)} tokens`;
  const bestBefore = Math.min(...contenders.map(({ times }) => times.at(-1)?.medianUs ?? Infinity));
  try {
    for (const contender of contenders) {
      const { times, trial, copies } = contender;
      const estimate = estimateOf(times.at(-1), numTokens, bestBefore, options.sliceMs);
      if (estimate !== undefined) {
        times.push({ backend: trial.backend, rule: trial.rule, numTokens, medianUs: estimate, spreadUs: 0, isEstimate: true });
        continue;
      }
      const run = await attempt(trial, doing, options.callLimitMs, options, async () => {
        const [first, ...others] = copies;
        const kernels = [first.kernel, ...others.map(({ kernel }) => kernel)] as const;
        const bench = new KernelBench(options.device, one.spec, kernels, numTokens, new Random(seed));
        // The first call touches memory for the first time; its time counts only where there is no other.
        return { contender, bench, samples: [], first: await bench.time() };
      });
      if (run === undefined) contender.isOut = true;
      else runs.push(run);
    }
    const begin = performance.now();
    for (let round = 0; round < maxRounds; round++) {
      if (round >= minRounds && performance.now() - begin > options.sliceMs * runs.length) break;
      for (const { contender, bench, samples } of runs) {
        if (contender.isOut) continue;
        const time = await attempt(contender.trial, doing, options.callLimitMs, options, bench.time);
        if (time === undefined) contender.isOut = true;
        else samples.push(time);
      }
    }
  } finally {
    for (const { bench } of runs) bench.dispose();
  }
  for (const { contender, samples } of runs) {
    const { backend, rule } = contender.trial;
    if (contender.isOut) continue;
    const sorted = [...samples].sort((a, b) => a - b);
    const spreadUs = (quantile(sorted, 0.75) - quantile(sorted, 0.25)) / 2;
    contender.times.push({ backend, rule, numTokens, medianUs: quantile(sorted, 0.5), spreadUs });
  }
  return runs[0]?.bench.work;
}

/** Time of a call that is not worth making; undefined when it is. */
function estimateOf(last: MeasuredTime | undefined, numTokens: number, bestUs: number, sliceMs: number): number | undefined {
  if (last === undefined) return undefined;
  const expectedUs = (last.medianUs * numTokens) / last.numTokens;
  const isHopeless = last.medianUs > hopelessRatio * bestUs && expectedUs > 1000 * sliceMs;
  return last.isEstimate === true || isHopeless || expectedUs > 1000 * maxCallMs ? expectedUs : undefined;
}

/** Runs a plugin's code; what it throws costs the rule its place, not the calibration. */
async function attempt<T>(
  trial: Trial,
  doing: string,
  limitMs: number,
  { onTrying, onFailed }: MeasureOptions,
  run: () => Promise<T>,
): Promise<T | undefined> {
  await onTrying(trial, doing, limitMs);
  try {
    return await run();
  } catch (thrown) {
    // Lack of memory, or a fault of the checkpoint, says nothing about the kernel.
    onFailed(trial, `${doing}: ${messageOf(thrown)}`, !isMoeError(thrown) || thrown.code === 'MOE_DEVICE_KERNEL');
    return undefined;
  }
}

/** Between two values in proportion. @param sorted - ascending, not empty. */
function quantile(sorted: readonly number[], part: number): number {
  const place = part * (sorted.length - 1);
  const below = sorted[Math.floor(place)] ?? Number.NaN;
  const above = sorted[Math.ceil(place)] ?? Number.NaN;
  return below + (place - Math.floor(place)) * (above - below);
}
