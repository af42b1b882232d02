import Table from 'cli-table3';
import { describeDevice } from '@moe-server/core';
import type { DeviceInfo, DeviceSupport, ErasedLinearBackend, ErasedMoeBackend, PluginInfo } from '@moe-server/core';
import { describeThisDevice, loadPlugins } from '../compose.js';
import type { ServerConfig } from '../config/server-config.js';
import { exitStatus } from '../exit-status.js';
import type { Terminal } from '../terminal/terminal.js';

/** One rule of one backend, as `backends --json` prints it. */
interface BackendRow {
  readonly backend: string;
  readonly kind: 'moe' | 'linear';
  readonly rule: string;
  readonly schemes: readonly string[];
  readonly device: string;
  readonly tokens: { readonly min?: number; readonly max?: number };
  /** Why the rule cannot run here: what the device lacks, or the installation; undefined when it can. */
  readonly problem: string | undefined;
}

/** `moe-server backends`: the plugins that are installed and every rule they declare. */
export async function backends(config: ServerConfig, { json }: { readonly json: boolean }, { out, err }: Terminal): Promise<number> {
  const { host, problems } = await loadPlugins(config);
  for (const problem of problems) err.write(`${problem}\n`);
  const { info: device, problem } = describeThisDevice(config);
  if (problem !== undefined) err.write(`${problem}\n`);
  const rows = [...host.moeBackends, ...host.linearBackends].flatMap((backend) => rowsOf(backend, device));
  if (json) {
    out.write(`${JSON.stringify({ device, plugins: host.plugins, problems, rules: rows }, undefined, 2)}\n`);
    return exitStatus.ok;
  }
  out.write(`${describeDevice(device)}\n\n${host.plugins.map(pluginLine).join('\n')}\n\n`);
  const table = new Table({
    head: ['backend', 'kind', 'rule', 'schemes', 'runs here'],
    style: { head: [], border: [] },
    chars: { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '' },
  });
  for (const row of rows) {
    const here = row.problem === undefined ? 'yes' : `no: ${row.problem}`;
    table.push([row.backend, row.kind === 'moe' ? 'experts' : 'linear', row.rule, row.schemes.join(' '), here]);
  }
  out.write(`${table.toString()}\n`);
  return exitStatus.ok;
}

function rowsOf(backend: ErasedMoeBackend | ErasedLinearBackend, device: DeviceInfo): BackendRow[] {
  return backend.rules.map((rule) => ({
    backend: backend.name,
    kind: backend.kind,
    rule: rule.id,
    schemes: rule.schemes,
    device: describeSupport(rule.device),
    tokens: rule.tokens,
    problem: lacking(rule.device, device) ?? backend.missing(rule.id),
  }));
}

/** What this device lacks for a rule, in few words; the plan says it at length. */
function lacking(support: DeviceSupport, device: DeviceInfo): string | undefined {
  if (support.type !== device.type) return `needs ${describeSupport(support)}`;
  if (support.type === 'cuda') return undefined;
  if (device.type !== 'cpu') return undefined;
  const { architecture } = device;
  const features = (support.features ?? []).filter((feature) => !device.features.includes(feature));
  if (support.architectures?.every((candidate) => candidate !== architecture) === true)
    return `needs ${support.architectures.join(' or ')}`;
  return features.length === 0 ? undefined : `needs ${features.join(', ')}`;
}

function pluginLine({ name, version, source, moeBackends, linearBackends }: PluginInfo): string {
  return `${name} ${version} from ${source}: experts by ${moeBackends.join(', ') || 'none'}, linears by ${linearBackends.join(', ') || 'none'}`;
}

function describeSupport(support: DeviceSupport): string {
  if (support.type === 'cpu') {
    return ['cpu', ...(support.architectures ?? []), ...(support.features ?? [])].join(' ');
  }
  if ('length' in support.sm) return support.sm.map((sm) => `sm_${String(sm)}`).join(' ');
  const { min, max } = support.sm;
  return `sm_${String(min ?? '')} to ${max === undefined ? 'newer' : `sm_${String(max)}`}`;
}
