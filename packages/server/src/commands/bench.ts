import { resolve } from 'node:path';
import { describeDevice, MoeError } from '@moe-server/core';
import type { MeasuredClass } from '@moe-server/core';
import { describeCpuRates, measureCpuRates } from '@moe-server/engine';
import { describeThisDevice } from '../composition/compose.js';
import type { ServerConfig } from '../config/server-config.js';
import { exitStatus } from '../exit-status.js';
import { classFiguresOf, meanRates } from '../measuring/kernel-figures.js';
import { measureKernels } from '../measuring/measure-kernels.js';
import type { ClassToMeasure, ClassWork, LayerShape, MeasuringSettings, Trial } from '../measuring/protocol.js';
import { bundledModel } from '../package-info.js';
import { kernelLines } from '../terminal/kernel-table.js';
import { createProgress } from '../terminal/progress.js';
import { paint } from '../terminal/terminal.js';
import type { Terminal } from '../terminal/terminal.js';

export interface BenchCommandOptions {
  readonly json: boolean;
  /** Sizes of a layer in place of a model's. */
  readonly shape: LayerShape | undefined;
  /** Tokens of a call, ascending. */
  readonly sizes: readonly number[];
  /** Empty = all. */
  readonly backends: readonly string[];
  /** Empty = all. */
  readonly schemes: readonly string[];
}

/**
 * `moe-server bench --kernels`: times every usable kernel of the installed backends on layers of a model or a shape, with random weights, in a
 * process of their own, and holds the times against what the machine can read and multiply.
 *
 * @returns 0, also when kernels failed: that is a result.
 * @throws {MoeError} MOE_USAGE for names that nobody knows, or when nothing can be measured; MOE_PLUGIN_ADDON without native code.
 */
export async function bench(config: ServerConfig, options: BenchCommandOptions, { out, err }: Terminal): Promise<number> {
  const { device: deviceName, threads, plugin, plugins, numericsPolicy, kvCacheDtype } = config;
  const { json, shape, sizes, backends, schemes } = options;
  const model = shape ?? resolve(config.model ?? bundledModel());
  const settings: MeasuringSettings = {
    ...{ model, directory: process.cwd(), device: deviceName, threads, plugin, plugins, numericsPolicy, kvCacheDtype },
    selection: { type: 'all', sizes, backends, schemes },
    maxNumBatchedTokens: Math.max(...sizes),
    // Every measurement gets as long as makes it steady.
    budgetMs: Infinity,
  };
  const { info: device } = describeThisDevice(config);
  const numThreads = device.type === 'cpu' ? device.numThreads : 1;
  // What is printed as JSON must be nothing else.
  const notes = json ? err : out;
  notes.write(`${describeDevice(device)}\n`);
  const before = await measureCpuRates({ numThreads });
  notes.write(`before  ${describeCpuRates(before)}\n`);

  const progress = createProgress(err, 'measuring  ', (count) => `${String(count)} times`);
  const classes: ClassToMeasure[] = [];
  const measured: { readonly times: MeasuredClass; readonly work: ClassWork }[] = [];
  const failed: (Trial & { readonly reason: string })[] = [];
  const { environment } = await measureKernels(settings, {
    onBegin: (begun) => {
      classes.push(...begun.classes);
      for (const problem of begun.problems) err.write(`${problem}\n`);
    },
    onProgress: (numDone, numAll) => {
      if (numAll > 0) progress.update(numDone, numAll);
    },
    onMeasured: (times, work) => measured.push({ times, work }),
    onFailed: (trial, reason) => failed.push({ ...trial, reason }),
  }).finally(progress.stop);
  if (classes.length === 0) throw nothingUsable(settings);
  const after = await measureCpuRates({ numThreads });
  const rates = meanRates(before, after);
  const results = classes.flatMap((one) => {
    const found = measured.find(({ times }) => times.layerClass === one.layerClass);
    return found === undefined ? [] : [classFiguresOf(one, found.times, found.work, rates)];
  });

  if (json) {
    out.write(`${JSON.stringify({ device, rates: { before, after }, environment, classes: results, failed }, undefined, 2)}\n`);
    return exitStatus.ok;
  }
  out.write(`after   ${describeCpuRates(after)}\n`);
  for (const one of results) out.write(`\n${kernelLines(one).join('\n')}\n`);
  for (const { backend, rule, reason } of failed) out.write(paint(out, 'yellow', `\n${backend}/${rule}: ${reason}.\n`));
  out.write(`\n${legend}\n`);
  return exitStatus.ok;
}

const legend =
  'GB/s: packed weights that a call reads, of experts those that its tokens chose. Floor: reading them, or the products at the rate of what\n' +
  'is multiplied, whichever takes longer. ~: not timed, scaled from the size before.';

function nothingUsable({ selection, model }: MeasuringSettings): MoeError {
  const { backends, schemes } = selection.type === 'all' ? selection : { backends: [], schemes: [] };
  const what = [
    ...(backends.length === 0 ? [] : [`--backend ${backends.join(',')}`]),
    ...(schemes.length === 0 ? [] : [`--scheme ${schemes.join(',')}`]),
  ];
  const of = typeof model === 'string' ? model : 'this shape';
  const message =
    `No installed kernel runs a layer of ${of} on this device${what.length === 0 ? '' : ` with ${what.join(' and ')}`}. ` +
    '"moe-server backends" lists the rules, "moe-server plan --explain" says why they refuse a layer.';
  return new MoeError('MOE_USAGE', message, { backends, schemes });
}
