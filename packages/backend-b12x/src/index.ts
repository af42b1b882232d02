import { createRequire } from 'node:module';
import { contractVersion, definePlugin } from '@moe-server/core';
import { B12xMoeBackend } from './backend.js';

export { B12xMoeBackend } from './backend.js';
export { expertRules, layout } from './support.js';
export type { B12xScheme } from './support.js';

const { version } = createRequire(import.meta.url)('../../package.json') as { readonly version: string };

/** The plugin `b12x`: NVFP4 experts on SM 12.0 and 12.1. */
export default definePlugin({
  name: 'b12x',
  version,
  contract: contractVersion,
  apply: (host) => {
    host.addMoeBackend(new B12xMoeBackend());
  },
});
