import { createRequire } from 'node:module';
import { contractVersion, definePlugin } from '@moe-server/core';
import { CutlassLinearBackend, CutlassMoeBackend } from './backend.js';

export { CutlassLinearBackend, CutlassMoeBackend } from './backend.js';
export { expertRules, layout, linearRules } from './support.js';
export type { CutlassScheme } from './support.js';

const { version } = createRequire(import.meta.url)('../../package.json') as { readonly version: string };

/** The plugin `cutlass`: tensor-core grouped GEMM: weight-only from SM 8.0, FP8 inputs from 8.9, NVFP4 inputs on 10.x and 12.x. */
export default definePlugin({
  name: 'cutlass',
  version,
  contract: contractVersion,
  apply: (host) => {
    host.addMoeBackend(new CutlassMoeBackend());
    host.addLinearBackend(new CutlassLinearBackend());
  },
});
