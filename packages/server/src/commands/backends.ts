import { describeDevice } from '@moe-server/core';
import { describeThisDevice, loadPlugins } from '../composition/compose.js';
import { declaredRules } from '../composition/declared-rules.js';
import type { ServerConfig } from '../config/server-config.js';
import { exitStatus } from '../exit-status.js';
import { ruleLegend, ruleLines } from '../terminal/rule-text.js';
import type { Terminal } from '../terminal/terminal.js';
import { textWidth, wrapText } from '../terminal/wrapped-text.js';

/** `moe-server backends`: the plugins that are installed and every rule they declare. */
export async function backends(config: ServerConfig, { json }: { readonly json: boolean }, { out, err }: Terminal): Promise<number> {
  const { host, problems } = await loadPlugins(config);
  for (const problem of problems) err.write(`${problem}\n`);
  const { info: device, problem } = describeThisDevice(config);
  if (problem !== undefined) err.write(`${problem}\n`);
  const rules = [...host.moeBackends, ...host.linearBackends].flatMap((backend) => declaredRules(backend, device));
  if (json) {
    out.write(`${JSON.stringify({ device, plugins: host.plugins, problems, rules }, undefined, 2)}\n`);
    return exitStatus.ok;
  }
  out.write(`${describeDevice(device)}\n\n`);
  for (const { name, version, source, moeBackends, linearBackends } of host.plugins) {
    out.write(`${name} ${version} (${source})\n`);
    for (const backend of new Set([...moeBackends, ...linearBackends])) {
      out.write(
        `${ruleLines(
          rules.filter((rule) => rule.backend === backend),
          out.columns,
        ).join('\n')}\n`,
      );
    }
    out.write('\n');
  }
  out.write(`${wrapText(ruleLegend, textWidth(out.columns), '', '').join('\n')}\n`);
  return exitStatus.ok;
}
