import { writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { activeBytesOf } from './active-bytes.js';
import type { Contestant } from './contestant.js';
import { measure } from './figures.js';
import type { Figure, Workload } from './figures.js';
import { describeMachine, QuietWaiter } from './machine.js';
import { extraTokens } from './moe-server.js';
import { openContestant } from './remote-contestant.js';
import { figureRows, tableHeading } from './report.js';
import { checkpointOf, shapeNames } from './shapes.js';
import type { ShapeName } from './shapes.js';

const help = `Measures prefill and decode on this machine's processors, against the memory bandwidth of the same minute.

  npm run bench -- [options]
  npm run bench -- plan [options]     time and memory of planning; its own --help

  --shape NAME        pocket (the bundled model, default), S (1.0 G parameters) or M (the layer of Qwen3-30B-A3B, 12 layers, 4.3 GB);
                      S and M are written with random weights at the first use and kept
  --layers N          fewer layers
  --checkpoint DIR    a checkpoint of your own instead
  --cache DIR         where synthetic checkpoints are kept (default: moe-bench in the temporary folder)
  --write-only        write the checkpoint, print its folder and stop: to convert it for the peer
  --threads N         2
  --runs N            3 counted runs of each figure, after one to warm up
  --prompt A,B        128,512: prompt lengths
  --context A,B       128,1024: lengths to decode at
  --tokens N          48: tokens decoded a run
  --parallel A,B      4: sequences decoded together, at the first context length
  --numerics CLASS    auto, same, wider or approximate
  --peer DIR          a folder whose node_modules has node-llama-cpp: runs it too, in turn, in the same run
  --peer-gguf FILE    the same weights for it
  --quiet N           60: seconds to wait, in all, for other programs to leave the processors alone
  --json FILE         write everything measured`;

const options = {
  shape: { type: 'string', default: 'pocket' },
  layers: { type: 'string' },
  checkpoint: { type: 'string' },
  cache: { type: 'string' },
  'write-only': { type: 'boolean', default: false },
  threads: { type: 'string', default: String(Math.min(2, availableParallelism())) },
  runs: { type: 'string', default: '3' },
  prompt: { type: 'string', default: '128,512' },
  context: { type: 'string', default: '128,1024' },
  tokens: { type: 'string', default: '48' },
  parallel: { type: 'string', default: '4' },
  numerics: { type: 'string' },
  peer: { type: 'string' },
  'peer-gguf': { type: 'string' },
  quiet: { type: 'string', default: '60' },
  json: { type: 'string' },
  help: { type: 'boolean', short: 'h', default: false },
} as const;

/** A mistake on the command line: printed with a pointer to the help, exit status 64. */
class UsageError extends Error {}

function parse(): ReturnType<typeof parseArgs<{ options: typeof options }>>['values'] {
  try {
    return parseArgs({ options }).values;
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

function count(name: string, text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 1) return value;
  throw new UsageError(`--${name} must be a whole number of at least 1, got "${text}".`);
}

function seconds(name: string, text: string): number {
  const value = Number(text);
  if (value >= 0) return value;
  throw new UsageError(`--${name} must be a number of seconds, got "${text}".`);
}

function counts(name: string, text: string): number[] {
  return text === '' ? [] : text.split(',').map((part) => count(name, part));
}

async function main(): Promise<void> {
  const values = parse();
  if (values.help) {
    console.log(help);
    return;
  }
  if (!(shapeNames as readonly string[]).includes(values.shape))
    throw new UsageError(`--shape must be one of ${shapeNames.join(', ')}, got "${values.shape}".`);
  if ((values.peer === undefined) !== (values['peer-gguf'] === undefined)) throw new UsageError('--peer and --peer-gguf go together.');
  const numLayers = values.layers === undefined ? undefined : count('layers', values.layers);
  const folder = values.checkpoint ?? (await checkpointOf(values.shape as ShapeName, numLayers, values.cache));
  if (values['write-only']) {
    console.log(folder);
    return;
  }

  const numThreads = count('threads', values.threads);
  const numRuns = count('runs', values.runs);
  const numTokens = count('tokens', values.tokens);
  const bytes = await activeBytesOf(folder);
  const workloads = workloadsOf({
    prompts: counts('prompt', values.prompt),
    contexts: counts('context', values.context),
    parallel: counts('parallel', values.parallel),
    numTokens,
    maxPositions: bytes.maxPositions,
  });
  const longest = Math.max(
    ...workloads.map((workload) => (workload.type === 'prefill' ? workload.numTokens : workload.contextLength + numTokens)),
  );
  const settings = {
    numThreads,
    maxModelLen: Math.min(longest + extraTokens + 16, bytes.maxPositions),
    maxNumSeqs: Math.max(8, ...counts('parallel', values.parallel)),
  };

  const ours = await openContestant('moe-server', {
    ...settings,
    model: folder,
    ...(values.numerics === undefined ? {} : { numerics: values.numerics }),
  });
  const contestants = [ours];
  if (values.peer !== undefined && values['peer-gguf'] !== undefined) {
    contestants.push(await openContestant('llama.cpp', { ...settings, model: values['peer-gguf'], peer: values.peer }));
  }
  const figures: Figure[] = [];
  try {
    const machine = describeMachine();
    const quiet = new QuietWaiter(seconds('quiet', values.quiet));
    console.log(`${folder}: ${(bytes.weightBytes / 1e6).toFixed(0)} MB of weights, ${(bytes.perToken / 1e6).toFixed(1)} MB a token`);
    console.log(`${machine.processor}, ${String(numThreads)} threads, median of ${String(numRuns)} runs`);
    for (const { facts } of contestants) console.log(describeFacts(facts));
    console.log(`\n${tableHeading()}`);
    for (const workload of workloads) {
      const figure = await measure(workload, contestants, bytes, { numRuns, numThreads, quiet });
      figures.push(figure);
      for (const line of figureRows(figure)) console.log(line);
    }
    if (values.json !== undefined) {
      const result = {
        machine,
        model: { folder, ...bytes },
        numThreads,
        numRuns,
        contestants: contestants.map(({ facts }) => facts),
        figures,
      };
      await writeFile(values.json, `${JSON.stringify(result, null, 2)}\n`);
    }
  } finally {
    for (const contestant of contestants) await contestant.close();
  }
}

/** `moe-server: modelopt MIXED_PRECISION, cpu/bf16-avx512 x 1, …, loaded in 0.2 s`. */
function describeFacts({ engine, loadSeconds, ...rest }: Contestant['facts']): string {
  const parts = Object.values(rest).flatMap((value) =>
    typeof value === 'string' ? [value] : Object.entries(value).map(([rule, layers]) => `${rule} x ${String(layers)}`),
  );
  return `${engine}: ${parts.join(', ')}, loaded in ${loadSeconds.toFixed(1)} s`;
}

interface WorkloadChoice {
  readonly prompts: readonly number[];
  readonly contexts: readonly number[];
  readonly parallel: readonly number[];
  readonly numTokens: number;
  readonly maxPositions: number;
}

/** Lengths that the model's positions do not reach are left out. */
function workloadsOf({ prompts, contexts, parallel, numTokens, maxPositions }: WorkloadChoice): Workload[] {
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

try {
  if (process.argv[2] === 'plan') await import('./plan.js');
  else await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : String(error));
  if (error instanceof UsageError) console.error('See npm run bench -- --help.');
  process.exitCode = error instanceof UsageError ? 64 : 1;
}
