import { statSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { freemem } from 'node:os';
import { basename } from 'node:path';
import { describeCpuRates, measureCpuRates } from '@moe-server/engine';
import { UsageError } from './arguments.js';
import { help, readCpuOptions } from './cpu-options.js';
import type { CpuBenchOptions } from './cpu-options.js';
import { measure } from './figures.js';
import type { Figure, Workload } from './figures.js';
import { describeMachine, QuietGuard } from './machine.js';
import { markdownOf } from './markdown.js';
import type { Measurement } from './markdown.js';
import { modelBytesOf } from './model-bytes.js';
import type { ModelBytes } from './model-bytes.js';
import { extraTokens } from './moe-server.js';
import { openContestant } from './remote-contestant.js';
import type { RemoteContestant } from './remote-contestant.js';
import { factsText, TextReport, titleOf } from './report.js';
import type { Sides } from './report.js';
import { checkpointOf } from './shapes.js';

/** `npm run bench -- cpu`. Figures go to standard output as they come, what is going on to standard error. */
export async function cpuBench(args: string[]): Promise<void> {
  const options = readCpuOptions(args);
  if (options === undefined) {
    console.log(help);
    return;
  }
  const folder = options.checkpoint ?? (await checkpointOf(options.shape, options.numLayers, options.cache));
  if (options.isWriteOnly) {
    console.log(folder);
    return;
  }
  const bytes = await modelBytesOf(folder);
  const workloads = workloadsOf(options, bytes);
  const contestants: RemoteContestant[] = [];
  try {
    const sides = await openAll(options, folder, bytes, workloads, contestants);
    const measurement = await measureAll(options, folder, bytes, workloads, contestants, sides);
    if (options.jsonFile !== undefined) await writeFile(options.jsonFile, `${JSON.stringify(measurement, null, 2)}\n`);
    if (options.markdownFile !== undefined) await writeFile(options.markdownFile, markdownOf(measurement, sides));
  } finally {
    for (const contestant of contestants) await contestant.close();
  }
}

/** Opens every engine; all stay open, so that they run in turn. @param contestants - filled. */
async function openAll(
  { numerics, numThreads, numTokens, parallel, peers }: CpuBenchOptions,
  folder: string,
  bytes: ModelBytes,
  workloads: readonly Workload[],
  contestants: RemoteContestant[],
): Promise<Sides> {
  const lengths = workloads.map((workload) => (workload.type === 'prefill' ? workload.numTokens : workload.contextLength + numTokens));
  const settings = {
    numThreads,
    maxModelLen: Math.min(Math.max(...lengths) + extraTokens + 16, bytes.maxPositions),
    maxNumSeqs: Math.max(8, ...parallel),
  };
  const files = peers?.files ?? [];
  warnOfMemory(numerics.length * bytes.weightBytes + files.reduce((sum, { file }) => sum + statSync(file).size, 0));
  const ours = numerics.map((name) => ({ name: numerics.length === 1 ? 'moe-server' : `moe-server ${name}`, numerics: name }));
  for (const one of ours) {
    tell(`opening ${one.name}`);
    contestants.push(await openContestant(one.name, 'moe-server', { ...settings, model: folder, numerics: one.numerics }));
  }
  for (const { label, file } of files) {
    tell(`opening ${label}`);
    contestants.push(
      await openContestant(label, 'llama.cpp', { ...settings, model: file, ...(peers === undefined ? {} : { peer: peers.folder }) }),
    );
  }
  return { ours: ours.map(({ name }) => name), peers: files.map(({ label }) => label) };
}

async function measureAll(
  { numThreads, numRuns, quietSeconds }: CpuBenchOptions,
  folder: string,
  bytes: ModelBytes,
  workloads: readonly Workload[],
  contestants: readonly RemoteContestant[],
  sides: Sides,
): Promise<Measurement> {
  const machine = describeMachine();
  const quiet = new QuietGuard(quietSeconds);
  tell('measuring the machine');
  await quiet.wait([process.pid]);
  const rates = [];
  for (const count of new Set([1, numThreads])) rates.push(await measureCpuRates({ numThreads: count }));

  const tokenBytes = bytes.denseBytes + bytes.expertsPerToken * bytes.expertBytes;
  console.log(`${folder}: ${(bytes.weightBytes / 1e6).toFixed(0)} MB of weights, ${(tokenBytes / 1e6).toFixed(1)} MB a token`);
  console.log(
    `${machine.processor}, ${String(numThreads)} threads, medians of ${String(numRuns)} runs, commit ${machine.commit ?? 'unknown'}`,
  );
  for (const of of rates) console.log(describeCpuRates(of));
  for (const contestant of contestants) console.log(factsText(contestant));
  const report = new TextReport(sides);
  console.log(`\n${report.heading}`);

  const figures: Figure[] = [];
  for (const [i, workload] of workloads.entries()) {
    const numAll = contestants.length * (numRuns + 1);
    let numDone = 0;
    if (!process.stderr.isTTY) tell(`${String(i + 1)} of ${String(workloads.length)}, ${titleOf(workload)}`);
    const onRun = (): void => {
      numDone += 1;
      tell(`${String(i + 1)} of ${String(workloads.length)}, ${titleOf(workload)}: ${String(numDone)} of ${String(numAll)} runs`, true);
    };
    const figure = await measure(workload, contestants, bytes, { numRuns, numThreads, quiet, onRun });
    figures.push(figure);
    for (const line of report.figure(figure)) console.log(line);
  }
  const peaks = contestants.map(({ name, facts, peakBytes }) => ({ name, facts, peakBytes: peakBytes() }));
  const known = peaks.flatMap(({ name, peakBytes }) => (peakBytes === undefined ? [] : [`${name} ${(peakBytes / 1e6).toFixed(0)} MB`]));
  if (known.length > 0) console.log(`\nmost memory of a process: ${known.join(', ')}`);
  return {
    machine,
    rates,
    model: { name: basename(folder), ...bytes },
    numThreads,
    numRuns,
    contestants: peaks,
    figures,
  };
}

/** Packed weights and the peers' files have about the size of what they come from. */
function warnOfMemory(wantedBytes: number): void {
  const spare = 2 * 2 ** 30;
  if (wantedBytes + spare <= freemem()) return;
  tell(
    `the engines want about ${(wantedBytes / 1e9).toFixed(1)} GB of weights beside caches, ${(freemem() / 1e9).toFixed(1)} GB are free: ` +
      'give fewer --peer-gguf files or one class of --numerics where this ends early',
  );
}

/** One line of standard error; where somebody watches, `isBrief` lines replace each other. */
function tell(line: string, isBrief = false): void {
  if (process.stderr.isTTY) process.stderr.write(`\x1b[2K${line}${isBrief ? '\r' : '\n'}`);
  else if (!isBrief) process.stderr.write(`${line}\n`);
}

/** Lengths that the model's positions do not reach are left out. */
function workloadsOf({ prompts, contexts, parallel, numTokens }: CpuBenchOptions, { maxPositions }: ModelBytes): Workload[] {
  const [firstContext] = contexts;
  const all: Workload[] = [
    ...prompts.map((length): Workload => ({ type: 'prefill', numTokens: length })),
    ...contexts.map((contextLength): Workload => ({ type: 'decode', contextLength, numTokens, numSequences: 1 })),
    ...(firstContext === undefined
      ? []
      : parallel.map((numSequences): Workload => ({ type: 'decode', contextLength: firstContext, numTokens, numSequences }))),
  ];
  const fitting = all.filter(
    (workload) => (workload.type === 'prefill' ? workload.numTokens : workload.contextLength + numTokens + extraTokens) < maxPositions,
  );
  if (fitting.length === 0) throw new UsageError(`Nothing to measure: the model has ${String(maxPositions)} positions.`);
  return fitting;
}
