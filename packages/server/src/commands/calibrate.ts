import { resolve } from 'node:path';
import Table from 'cli-table3';
import { isAsFast, measuredCosts, messageOf, ruleName } from '@moe-server/core';
import type { Logger, MeasuredClass } from '@moe-server/core';
import { writeResults } from '../calibration/calibration-file.js';
import { fingerprintOf } from '../calibration/environment.js';
import { cacheDirectory } from '../config/cache-directory.js';
import type { ServerConfig } from '../config/server-config.js';
import { exitStatus } from '../exit-status.js';
import { measureKernels } from '../measuring/measure-kernels.js';
import type { ClassToMeasure, MeasuringSettings, Trial } from '../measuring/protocol.js';
import { bundledModel } from '../package-info.js';
import { createProgress } from '../terminal/progress.js';
import { paint } from '../terminal/terminal.js';
import type { Terminal } from '../terminal/terminal.js';

export interface CalibrateCommandOptions {
  readonly json: boolean;
  /** Time for all measurements together. */
  readonly budgetMs: number;
}

/** A class of layers with what came out, as `calibrate --json` prints it. */
interface ClassRow {
  readonly layer: string;
  readonly kind: 'moe' | 'linear';
  readonly scheme: string;
  readonly numLayers: number;
  readonly measuredAt: string;
  /** Cheapest first; null = it failed, and `failed` says why. */
  readonly rules: readonly {
    readonly backend: string;
    readonly rule: string;
    readonly costUs: number | null;
    readonly spreadUs: number | null;
  }[];
  readonly times: MeasuredClass['times'];
}

/**
 * `moe-server calibrate`: times the kernels that could serve a model's layers, in a process of their own, and keeps the times for `start` and
 * `plan`.
 *
 * @returns 0, also when kernels failed: that is a result; 1 when the times cannot be kept.
 */
export async function calibrate(
  config: ServerConfig,
  { json, budgetMs }: CalibrateCommandOptions,
  { out, err }: Terminal,
): Promise<number> {
  const { device, threads, plugin, plugins, maxNumBatchedTokens, kvCacheDtype, numericsPolicy } = config;
  const model = resolve(config.model ?? bundledModel());
  // What is printed as JSON must be nothing else.
  const notes = json ? err : out;
  const progress = createProgress(notes, 'measuring  ', (count) => `${String(count)} times`);
  const classes: ClassToMeasure[] = [];
  const measured: MeasuredClass[] = [];
  const failed: (Trial & { readonly reason: string })[] = [];
  const settings: MeasuringSettings = {
    ...{ model, directory: process.cwd(), device, threads, plugin, plugins },
    ...{ maxNumBatchedTokens, kvCacheDtype, numericsPolicy, budgetMs, selection: { type: 'choices' } },
  };
  const { environment, ...results } = await measureKernels(settings, {
    onBegin: (begun) => {
      classes.push(...begun.classes);
      for (const problem of begun.problems) err.write(`${problem}\n`);
      const seconds = String(Math.max(1, Math.round(begun.expectedMs / 1000)));
      notes.write(
        `${model}\n${String(begun.classes.length)} kinds of layers, ${String(begun.numMeasurements)} times to take, about ${seconds} s\n`,
      );
    },
    onProgress: progress.update,
    onMeasured: (one) => measured.push(one),
    onFailed: (trial, reason) => failed.push({ ...trial, reason }),
  }).finally(progress.stop);

  const cache = config.cacheDir ?? cacheDirectory(process.env);
  const kept = await writeResults(cache, environment, results, warningsOn(err)).then(
    (file) => ({ file }),
    (thrown: unknown) => ({ problem: `The times cannot be kept in ${cache}: ${messageOf(thrown)}. Name another folder with --cache-dir.` }),
  );
  const rows = classes.flatMap((one) => {
    const found = measured.find(({ layerClass }) => layerClass === one.layerClass);
    return found === undefined ? [] : [rowOf(one, found)];
  });
  if (json) {
    out.write(
      `${JSON.stringify({ environment, fingerprint: fingerprintOf(environment), ...kept, classes: rows, failed }, undefined, 2)}\n`,
    );
    return 'file' in kept ? exitStatus.ok : exitStatus.fault;
  }
  out.write(rows.length === 0 ? 'No layer has more than one kernel to choose from here.\n' : `\n${tableOf(rows)}\n`);
  for (const { backend, rule, reason } of failed) out.write(paint(out, 'yellow', `${backend}/${rule}: ${reason}.\n`));
  if (!('file' in kept)) {
    err.write(`${kept.problem}\n`);
    return exitStatus.fault;
  }
  out.write(`\nKept in ${kept.file}\nstart and plan rank by it from now on; --no-calibration ignores it.\n`);
  return exitStatus.ok;
}

function rowOf(one: ClassToMeasure, found: MeasuredClass): ClassRow {
  const { spec, scheme, numLayers } = one;
  const costs = measuredCosts(one.rules, spec, found, Infinity);
  const rules = one.rules.map(({ backend, rule }) => {
    const { costUs = null, spreadUs = null } = costs.get(ruleName({ backend, rule })) ?? {};
    return { backend, rule, costUs, spreadUs };
  });
  rules.sort((a, b) => (a.costUs ?? Number.MAX_VALUE) - (b.costUs ?? Number.MAX_VALUE));
  return { layer: spec.name, kind: spec.kind, scheme, numLayers, measuredAt: found.measuredAt, rules, times: found.times };
}

function tableOf(rows: readonly ClassRow[]): string {
  const table = new Table({
    head: ['layers', 'scheme', 'kernel', 'µs a token', ''],
    style: { head: [], border: [] },
    colAligns: ['left', 'left', 'left', 'right', 'left'],
  });
  for (const { layer, scheme, numLayers, rules } of rows) {
    const [best] = rules;
    const marks = rules.map(({ costUs, spreadUs }) => {
      if (costUs === null || spreadUs === null) return 'failed';
      const lowest = { costUs: best?.costUs ?? costUs, spreadUs: best?.spreadUs ?? spreadUs, at: '' };
      return isAsFast({ costUs, spreadUs, at: '' }, lowest) ? 'fastest' : `${(costUs / lowest.costUs).toFixed(2)} times that`;
    });
    table.push([
      numLayers === 1 ? layer : `${String(numLayers)} like ${layer}`,
      scheme,
      rules.map(ruleName).join('\n'),
      rules.map(({ costUs }) => (costUs === null ? '' : costUs.toFixed(1))).join('\n'),
      marks.join('\n'),
    ]);
  }
  return table.toString();
}

/** The cache's warnings, where a command has no log. */
function warningsOn(err: Terminal['err']): Pick<Logger, 'warn'> {
  return {
    warn: (_fields, message) => {
      err.write(`${message}.\n`);
    },
  };
}
