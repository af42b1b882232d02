import { createRequire } from 'node:module';
import { contractVersion, definePlugin } from '@moe-server/core';
import { TritonLinearBackend, TritonMoeBackend } from './backend.js';

export { TritonLinearBackend, TritonMoeBackend } from './backend.js';
export { expertRules, layout, linearRules } from './support.js';
export type { TritonScheme } from './support.js';

const { version } = createRequire(import.meta.url)('../../package.json') as { readonly version: string };

/** The plugin `triton`: experts and linears on every CUDA device from SM 8.0. */
export default definePlugin({
  name: 'triton',
  version,
  contract: contractVersion,
  apply: (host) => {
    host.addMoeBackend(new TritonMoeBackend());
    host.addLinearBackend(new TritonLinearBackend());
  },
});
