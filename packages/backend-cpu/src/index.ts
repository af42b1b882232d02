import { createRequire } from 'node:module';
import { contractVersion, definePlugin } from '@moe-server/core';
import { CpuLinearBackend, CpuMoeBackend } from './backend.js';

export { CpuLinearBackend, CpuMoeBackend } from './backend.js';
export { cpuAddon } from './addon.js';
export type { CpuAddon, InstructionSet, KernelExternal } from './addon.js';
export type { CpuScheme } from './formats.js';
export { expertRules, layout, linearRules } from './support.js';

const { version } = createRequire(import.meta.url)('../../package.json') as { readonly version: string };

/** The plugin `cpu`: experts and linears on x86-64 with AVX-512 or AVX2, and a portable path for everything else. */
export default definePlugin({
  name: 'cpu',
  version,
  contract: contractVersion,
  apply: (host) => {
    host.addMoeBackend(new CpuMoeBackend());
    host.addLinearBackend(new CpuLinearBackend());
  },
});
