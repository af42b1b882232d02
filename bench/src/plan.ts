import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { deepseekV3, measureProcess, mixedQwen35Moe, repositoryRoot, writeSparseCheckpoint } from '@moe-server/test-kit';
import type { MeasuredProcess, SparseModel } from '@moe-server/test-kit';
import { parseArguments, UsageError } from './arguments.js';
import { median } from './figures.js';
import { describeMachine } from './machine.js';

const help = `Measures "moe-server plan" on checkpoints in their real sizes, of which only the headers lie on disk.

  npm run bench -- plan [options]

  --as DEVICE    gb10
  --runs N       5 counted runs, after one to warm up the disk's cache; the median counts`;

interface Shape {
  readonly name: string;
  readonly model: () => SparseModel;
}

const shapes: readonly Shape[] = [
  { name: '35B-A3B mixed', model: () => mixedQwen35Moe() },
  { name: 'DeepSeek-V3 FP8', model: () => deepseekV3() },
  { name: 'DeepSeek-V3 NVFP4', model: () => deepseekV3({ experts: 'nvfp4' }) },
];

/** `npm run bench -- plan`: writes each shape, plans it in fresh processes, and prints one line of figures for it. */
export async function planBench(args: string[]): Promise<void> {
  const { values } = parseArguments({
    args,
    options: {
      as: { type: 'string', default: 'gb10' },
      runs: { type: 'string', default: '5' },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(`${help}\n`);
    return;
  }
  const numRuns = Number(values.runs);
  if (!Number.isInteger(numRuns) || numRuns < 1) throw new UsageError(`--runs: expected a positive integer, got ${values.runs}`);
  const { processor, processors, node, commit = 'unknown' } = describeMachine();
  process.stdout.write(`${processor}, ${String(processors)} processors, Node ${node}, commit ${commit}\n\n`);
  for (const { name, model } of shapes) {
    const folder = await mkdtemp(join(tmpdir(), 'moe-plan-'));
    try {
      const written = model();
      const totalBytes = await writeSparseCheckpoint(folder, written);
      const runs: MeasuredProcess[] = [];
      for (let run = 0; run <= numRuns; run++) {
        runs.push(
          await measureProcess(join(repositoryRoot, 'packages/server/dist/src/bin.js'), ['plan', '--model', folder, '--as', values.as]),
        );
      }
      runs.shift();
      const failed = runs.find(({ status }) => status !== 0 && status !== 2);
      if (failed !== undefined) throw new Error(`moe-server plan ended with ${String(failed.status)}:\n${failed.stderr}`);
      const seconds = median(runs.map((run) => run.seconds));
      const processorSeconds = median(runs.map((run) => run.processorSeconds));
      const megabytes = Math.max(...runs.map((run) => run.peakBytes)) / 1e6;
      process.stdout.write(
        `${name.padEnd(18)} ${String(written.tensors.length).padStart(7)} tensors of ${(totalBytes / 1e9).toFixed(0)} GB: ` +
          `${seconds.toFixed(2)} s, ${processorSeconds.toFixed(2)} s of processors, ${megabytes.toFixed(0)} MB at most\n`,
      );
    } finally {
      await rm(folder, { recursive: true });
    }
  }
}
