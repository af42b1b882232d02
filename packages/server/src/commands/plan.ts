import { resolve } from 'node:path';
import {
  Checkpoint,
  describeDevice,
  describeModel,
  deviceProfile,
  diffPlans,
  explainUnserved,
  formatBytes,
  isMoeError,
} from '@moe-server/core';
import { isServable, messageOf, MoeError } from '@moe-server/core';
import type { DeviceInfo, Evidence, ModelDescription, ParallelPlacement, Plan, PlanDiff, PluginHost } from '@moe-server/core';
import { supportedArchitectures } from '@moe-server/engine';
import { readCalibration } from '../calibration/calibration-file.js';
import { describeThisDevice, loadPlugins, makePlan } from '../composition/compose.js';
import { keepPlan, openPlanFile } from '../composition/kept-plan.js';
import { cacheDirectory } from '../config/cache-directory.js';
import type { ServerConfig } from '../config/server-config.js';
import { exitStatus } from '../exit-status.js';
import { bundledModel } from '../package-info.js';
import { planText } from '../terminal/plan-text.js';
import { paint } from '../terminal/terminal.js';
import type { Terminal } from '../terminal/terminal.js';
import { textWidth, wrapText } from '../terminal/wrapped-text.js';

export interface PlanCommandOptions {
  readonly json: boolean;
  readonly explain: boolean;
  /** Name of a device to plan for instead of this machine. */
  readonly as?: string | undefined;
  /** File to keep the plan in. */
  readonly out?: string | undefined;
  /** File with an earlier plan to compare with. */
  readonly diff?: string | undefined;
}

/**
 * `moe-server plan`: which kernel would serve which layer, from config.json and the tensor headers alone.
 *
 * @returns 0, or 2 when layers are unserved or do not fit.
 */
export async function plan(config: ServerConfig, options: PlanCommandOptions, { out, err }: Terminal): Promise<number> {
  const directory = resolve(config.model ?? bundledModel());
  // Before any work, so that a misspelt file costs nothing.
  const earlier = options.diff === undefined ? undefined : openPlanFile(options.diff, '--diff');
  const { host, problems } = await loadPlugins(config);
  for (const problem of problems) err.write(`${problem}\n`);
  const device = plannedDevice(config, options.as, err);
  const parallel = parallelOf(config);
  const checkpoint = await Checkpoint.open(directory);
  try {
    const description = describeModel(checkpoint, { parallel, kvCache: config.kvCacheDtype });
    // What was measured here says nothing of another device.
    const evidence = options.as === undefined ? await calibrationOf(config, host, device, err) : {};
    const made = makePlan(host, description, device, config, options.as !== undefined, evidence);
    const diff = earlier === undefined ? undefined : diffPlans(earlier, { plan: made, plugins: host.plugins });
    if (options.out !== undefined) keepPlan(options.out, made, host.plugins);
    if (options.json) out.write(`${JSON.stringify(diff === undefined ? made : { ...made, diff }, undefined, 2)}\n`);
    else {
      out.write(`${directory}\n${modelLine(description)}\n${deviceLine(device, parallel)}\n\n`);
      out.write(`${planText(made, { width: out.columns, explain: options.explain }).join('\n')}\n${bytesLine(made)}\n`);
      if (options.as === undefined) out.write(`${evidenceLine(made)}\n`);
      for (const notice of [...made.notices, ...remarksOn(made, description)]) {
        for (const line of wrapText(notice, textWidth(out.columns), '', '  ')) out.write(`${paint(out, 'yellow', line)}\n`);
      }
      if (diff !== undefined) out.write(diffText(diff, options.diff ?? ''));
      if (!options.explain) out.write(paint(out, 'dim', 'Why not another kernel? --explain lists every refusal.\n'));
    }
    if (isServable(made)) return exitStatus.ok;
    err.write(`${paint(err, 'red', 'error')}: ${explainUnserved(made).message}\n`);
    return exitStatus.unserved;
  } finally {
    await checkpoint.close();
  }
}

function calibrationOf(config: ServerConfig, host: PluginHost, device: DeviceInfo, err: Terminal['err']): Promise<Evidence> {
  const { calibration, cacheDir = cacheDirectory(process.env) } = config;
  return readCalibration({ calibration, cacheDir }, host, device, {
    warn: (_fields, message) => {
      err.write(`${message}.\n`);
    },
  });
}

function evidenceLine({ evidence }: Plan): string {
  if (evidence === undefined) return 'kernels ranked by priority; nothing was measured here, which moe-server calibrate does';
  return `kernels ranked by measurement where there is one (moe-server calibrate, environment ${evidence.environment}), else by priority`;
}

function plannedDevice(config: ServerConfig, as: string | undefined, err: Terminal['err']): DeviceInfo {
  if (as === undefined) return thisDevice(config, err);
  try {
    return deviceProfile(as, as.toLowerCase() === 'cpu' ? thisDevice(config, err) : undefined);
  } catch (thrown) {
    throw isMoeError(thrown) ? new MoeError(thrown.code, `--as ${as}: ${messageOf(thrown)}`, thrown.details, { cause: thrown }) : thrown;
  }
}

function thisDevice(config: ServerConfig, err: Terminal['err']): DeviceInfo {
  const { info, problem } = describeThisDevice(config);
  if (problem !== undefined) err.write(`Planned for a processor without extensions, because this one could not be asked: ${problem}\n`);
  return info;
}

/** The first of the ranks; what the others hold has the same shape wherever sizes divide, and describeModel refuses where they do not. */
function parallelOf({ tensorParallelSize, enableExpertParallel }: ServerConfig): ParallelPlacement {
  return { tpRank: 0, tpSize: tensorParallelSize, epRank: 0, epSize: enableExpertParallel ? tensorParallelSize : 1 };
}

function modelLine({ architecture, quantization }: ModelDescription): string {
  return `${architecture}, ${quantization}`;
}

function deviceLine(device: DeviceInfo, { tpSize, epSize }: ParallelPlacement): string {
  if (tpSize === 1) return describeDevice(device);
  const how = epSize > 1 ? `tensor parallel ${String(tpSize)}, experts shared by the ranks` : `tensor parallel ${String(tpSize)}`;
  return `${describeDevice(device)}, one of ${String(tpSize)}: ${how}`;
}

function bytesLine({ bytes: { residentBytes, requiredBytes, availableBytes } }: Plan): string {
  const available = availableBytes === null ? '' : `; ${formatBytes(availableBytes)} are available`;
  return `weights ${formatBytes(residentBytes)}, with working memory ${formatBytes(requiredBytes)}${available}`;
}

function remarksOn(made: Plan, { architecture, draftProblem }: ModelDescription): string[] {
  const remarks = draftProblem === undefined ? [] : [draftProblem];
  if (made.layers.some(({ bindings }) => bindings.some(({ built }) => !built))) {
    remarks.push(
      'Kernels that are not built are judged by what they declare. A start on such a device refuses them; start --simulate computes it, slowly.',
    );
  }
  if (!(supportedArchitectures as readonly string[]).includes(architecture)) {
    remarks.push(`Planned only: ${architecture} cannot be served yet; ${supportedArchitectures.join(' and ')} can.`);
  }
  return remarks;
}

function diffText({ changes, sentences }: PlanDiff, file: string): string {
  if (sentences.length === 0) return `\nNothing differs from ${file}.\n`;
  const count = changes.length === 0 ? 'no layer is' : changes.length === 1 ? '1 layer is' : `${String(changes.length)} layers are`;
  return `\nSince ${file}, ${count} served otherwise:\n${sentences.map((sentence) => `  ${sentence}\n`).join('')}`;
}
