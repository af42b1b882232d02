// Runs thousands of steps of pocket-dictionary and reports what they cost beside computing: started by steady-state.test.ts with
// --expose-gc, because a heap is known only after a collection, and in a process of its own, because others' garbage would hide ours.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Batch, GenerationRequest, StepTimes } from '@moe-server/engine';
import { pocketDictionary } from '@moe-server/test-kit';
import { createEngine } from 'moe-server';

/** What a number of steps left behind and what they took. */
export interface PhaseReport {
  readonly numSteps: number;
  /** Calls of the engine's addon that ran commands. */
  readonly numNativeSteps: number;
  /** Memory that the engine's addon and the cpu backend's asked for. */
  readonly numAllocations: number;
  /** Growth of what lives on the heap, after a collection each time. */
  readonly heapBytes: number;
  /** Growth of resident memory beside the pages that V8 keeps for its heap, whose number goes up and down with the garbage. */
  readonly nativeBytes: number;
}

/** Steps of one sequence, one after the other. */
export interface GapReport {
  /** From the end of one native step to the start of the next, in microseconds. */
  readonly medianUs: number;
  /** Processors that other programs used meanwhile. */
  readonly otherProcessors: number;
}

export interface SteadyStateReport {
  /** Imports whose calls are counted; 0 where they were not found in one of the addons. */
  readonly numWatchedImports: number;
  /** Allocations that were counted of a call that does allocate. */
  readonly numCountedAtFirst: number;
  readonly alone: PhaseReport;
  readonly comingAndGoing: PhaseReport;
  readonly gaps: readonly GapReport[];
}

interface AllocationCounter {
  readonly watch: (fileName: string) => number;
  readonly numAllocations: () => number;
}

const stepsPerPhase = Number(process.argv[2]);
const require = createRequire(import.meta.url);
const engineBuild = join(fileURLToPath(import.meta.resolve('@moe-server/engine/package.json')), '../build/Release');

interface NativeAddon {
  readonly cpuInfo: () => unknown;
  CpuDevice: new (...args: readonly unknown[]) => NativeDevice;
}
interface NativeDevice {
  // A method, or no class could override it.
  // eslint-disable-next-line @typescript-eslint/method-signature-style
  submit(...args: readonly unknown[]): unknown;
}
const native = require(join(engineBuild, 'engine_cpu.node')) as NativeAddon;
let numNativeSteps = 0;
native.CpuDevice = class extends native.CpuDevice {
  override submit(...args: readonly unknown[]): unknown {
    numNativeSteps++;
    return super.submit(...args);
  }
};

const { engine, runner, info, dispose } = await createEngine({
  model: pocketDictionary,
  threads: 2,
  plugins: false,
  maxNumSeqs: 8,
  maxModelLen: 512,
  // Few, so that the prefix cache is full before anything is measured.
  kvCacheMemoryBytes: 4 * 2 ** 20,
  seed: 1,
});
const counter = require(join(engineBuild, 'engine_test_allocations.node')) as AllocationCounter;
const numWatchedImports = counter.watch('engine_cpu.node') && counter.watch('backend_cpu.node');
// Lists of strings: this allocates.
native.cpuInfo();
const numCountedAtFirst = counter.numAllocations();

const stepsPerWindow = 500;
const numWindows = Math.ceil(stepsPerPhase / stepsPerWindow);
/** Of the steps that run alone: microseconds since the step before ended. Made beforehand, as memory is being watched. */
const gaps = new Float64Array(numWindows * stepsPerWindow);
const ticks = Array.from({ length: numWindows + 1 }, processorTicks);
let numGaps = gaps.length;
let endedMs = NaN;

const execute = runner.execute.bind(runner) as (batch: Batch) => ReturnType<typeof runner.execute>;
Object.assign(runner, {
  execute: (batch: Batch) => {
    const execution = execute(batch);
    noteStep(runner.lastStep);
    return execution;
  },
});

/** Of the step that ended last, while the next one runs. */
function noteStep(step: StepTimes): void {
  if (numGaps < gaps.length) {
    if (numGaps % stepsPerWindow === 0) ticks[numGaps / stepsPerWindow] = processorTicks();
    gaps[numGaps++] = (step.beganMs - endedMs) * 1e3;
    if (numGaps === gaps.length) ticks[numWindows] = processorTicks();
  }
  endedMs = step.endedMs;
}

let state = 1;
/** A whole number below `bound`, from a linear congruential generator (Numerical Recipes). */
function random(bound: number): number {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state / 2 ** 32) * bound);
}

let numRequests = 0;
let onEnd: () => void = () => undefined;
engine.onEvent((event) => {
  if (event.type === 'error') throw new Error(event.error.message);
  if (event.type === 'finish') onEnd();
});
engine.start();

function add(promptLength: number, maxTokens: number): void {
  const sampling: GenerationRequest['sampling'] = {
    maxTokens,
    minTokens: 0,
    temperature: 1,
    topK: numRequests % 3 === 0 ? 20 : 0,
    topP: numRequests % 2 === 0 ? 0.9 : 1,
    minP: 0,
    repetitionPenalty: 1,
    presencePenalty: numRequests % 5 === 0 ? 0.5 : 0,
    frequencyPenalty: 0,
    logitBias: [],
    seed: undefined,
    logprobs: numRequests % 7 === 0 ? 2 : undefined,
    promptLogprobs: undefined,
    stopTokenIds: [],
    ignoreEos: true,
  };
  const promptTokenIds = Array.from({ length: promptLength }, () => random(info.vocabSize));
  engine.addRequest({ id: `request ${String(numRequests++)}`, promptTokenIds, sampling });
}

/** Keeps `numSequences` requests alive until so many steps have run and all have ended. */
async function run(numSteps: number, numSequences: () => number, length: () => number): Promise<void> {
  const until = engine.stats().numSteps + numSteps;
  let numAlive = 0;
  await new Promise<void>((resolve) => {
    const refill = (): void => {
      // As the server does.
      engine.takeMetrics();
      if (engine.stats().numSteps >= until) {
        if (numAlive === 0) resolve();
        return;
      }
      for (const wanted = numSequences(); numAlive < wanted; numAlive++) add(1 + random(40), length());
    };
    onEnd = () => {
      numAlive--;
      refill();
    };
    refill();
  });
}

const one = (): number => 1;
const oneToEight = (): number => 1 + random(8);
const short = (): number => 1 + random(60);

interface Usage {
  readonly numSteps: number;
  readonly numNativeSteps: number;
  readonly numAllocations: number;
  readonly heapBytes: number;
  readonly nativeBytes: number;
}

async function usage(): Promise<Usage> {
  // What the last promises and messages hold goes first.
  for (let i = 0; i < 3; i++) {
    await new Promise((resolve) => setImmediate(resolve));
    globalThis.gc?.();
  }
  const { heapUsed, heapTotal, rss } = process.memoryUsage();
  const { numSteps } = engine.stats();
  return { numSteps, numNativeSteps, numAllocations: counter.numAllocations(), heapBytes: heapUsed, nativeBytes: rss - heapTotal };
}

function difference(before: Usage, after: Usage): PhaseReport {
  return {
    numSteps: after.numSteps - before.numSteps,
    numNativeSteps: after.numNativeSteps - before.numNativeSteps,
    numAllocations: after.numAllocations - before.numAllocations,
    heapBytes: after.heapBytes - before.heapBytes,
    nativeBytes: after.nativeBytes - before.nativeBytes,
  };
}

interface Ticks {
  readonly atMs: number;
  /** Processor time of all programs and of this one, in milliseconds. */
  readonly allMs: number;
  readonly ownMs: number;
}

function processorTicks(): Ticks {
  // proc(5): user, nice, system, idle, iowait, irq, softirq, steal, in hundredths of a second.
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0, steal = 0] =
    readFileSync('/proc/stat', 'utf8').split('\n', 1)[0]?.split(/ +/).slice(1).map(Number) ?? [];
  const { userCPUTime, systemCPUTime } = process.resourceUsage();
  return {
    atMs: performance.now(),
    allMs: (user + nice + system + irq + softirq + steal) * 10,
    ownMs: (userCPUTime + systemCPUTime) / 1e3,
  };
}

function reportGaps(): GapReport[] {
  return Array.from({ length: numWindows }, (_, i) => {
    const sorted = gaps.slice(i * stepsPerWindow, (i + 1) * stepsPerWindow).sort();
    const from = ticks[i]!;
    const to = ticks[i + 1]!;
    const otherMs = to.allMs - from.allMs - (to.ownMs - from.ownMs);
    return { medianUs: sorted[stepsPerWindow / 2] ?? NaN, otherProcessors: Math.max(0, otherMs) / (to.atMs - from.atMs) };
  });
}

// Until code is compiled, the prefix cache is full, and every size of step was seen.
await run(1500, oneToEight, short);
await run(500, one, () => 200);

const before = await usage();
numGaps = 0;
await run(stepsPerPhase, one, () => 400);
const between = await usage();
await run(stepsPerPhase, oneToEight, short);
const after = await usage();
await dispose();

const report: SteadyStateReport = {
  numWatchedImports,
  numCountedAtFirst,
  alone: difference(before, between),
  comingAndGoing: difference(between, after),
  gaps: reportGaps(),
};
process.send?.(report);
process.disconnect();
