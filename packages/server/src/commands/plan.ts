import { resolve } from 'node:path';
import { Checkpoint, describeDevice, describeModel, formatBytes, isServable } from '@moe-server/core';
import type { DeviceInfo } from '@moe-server/core';
import { supportedArchitectures } from '@moe-server/engine';
import { describeThisDevice, loadPlugins, makePlan } from '../compose.js';
import type { ServerConfig } from '../config/server-config.js';
import { exitStatus } from '../exit-status.js';
import { namedDevice } from '../named-device.js';
import { bundledModel } from '../package-info.js';
import { planTable, refusalLines } from '../terminal/plan-text.js';
import { paint } from '../terminal/terminal.js';
import type { Terminal } from '../terminal/terminal.js';

export interface PlanCommandOptions {
  readonly json: boolean;
  readonly explain: boolean;
  /** Name of a device to plan for instead of this machine. */
  readonly as: string | undefined;
}

/**
 * `moe-server plan`: which kernel would serve which layer, from config.json and the tensor headers alone.
 *
 * @returns 0, or 2 when layers are unserved or do not fit.
 */
export async function plan(config: ServerConfig, options: PlanCommandOptions, { out, err }: Terminal): Promise<number> {
  const directory = resolve(config.model ?? bundledModel());
  const { host, problems } = await loadPlugins(config);
  for (const problem of problems) err.write(`${problem}\n`);
  const device = options.as === undefined ? thisDevice(config, err) : namedDevice(options.as);
  const checkpoint = await Checkpoint.open(directory);
  try {
    const description = describeModel(checkpoint);
    const made = makePlan(host, description, device, config, options.as !== undefined);
    if (options.json) {
      out.write(`${JSON.stringify(made, undefined, 2)}\n`);
      return isServable(made) ? exitStatus.ok : exitStatus.unserved;
    }
    const { architecture, quantization, draftProblem } = description;
    out.write(`${directory}\n${architecture}, ${quantization}\n${describeDevice(device)}\n\n${planTable(made)}\n`);
    const { residentBytes, requiredBytes, availableBytes } = made.bytes;
    const available = availableBytes === null ? '' : `; ${formatBytes(availableBytes)} are available`;
    out.write(`\nweights ${formatBytes(residentBytes)}, with working memory ${formatBytes(requiredBytes)}${available}\n`);
    for (const notice of [...made.notices, ...(draftProblem === undefined ? [] : [draftProblem])]) out.write(`${notice}\n`);
    if (options.explain) out.write(`\n${refusalLines(made).join('\n')}\n`);
    else out.write(paint(out, 'dim', 'Why not another kernel? --explain lists every refusal.\n'));
    if (!(supportedArchitectures as readonly string[]).includes(architecture)) {
      const message = `Planned only: ${architecture} cannot be served yet; ${supportedArchitectures.join(' and ')} can.`;
      out.write(`${paint(out, 'yellow', message)}\n`);
    }
    return isServable(made) ? exitStatus.ok : exitStatus.unserved;
  } finally {
    await checkpoint.close();
  }
}

function thisDevice(config: ServerConfig, err: Terminal['err']): DeviceInfo {
  const { info, problem } = describeThisDevice(config);
  if (problem !== undefined) err.write(`Planned for a processor without extensions, because this one could not be asked: ${problem}\n`);
  return info;
}
