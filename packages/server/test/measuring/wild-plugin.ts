import { contractVersion, definePlugin, SCHEME } from '@moe-server/core';
import type { LinearBackend, LinearSupportRule, PackedWeights } from '@moe-server/core';

/** A plugin with one good kernel, which does nothing, and three that fail in every way there is. */
const rules = ['good', 'crash', 'hang', 'throw'].map((id): LinearSupportRule<'bf16'> => ({
  id,
  schemes: ['bf16'],
  device: { type: 'cpu' },
  tokens: {},
  arithmetic: { input: { type: 'float', dtype: 'f32' }, weights: 'exact', accumulator: 'f32', intermediate: 'f32', output: 'f32' },
  layout: 'wild/nothing@1',
  sizes: { inFeatures: { multipleOf: 1 }, outFeatures: { multipleOf: 1 } },
}));

const deeds: Readonly<Record<string, () => void>> = {
  good: () => undefined,
  crash: () => process.kill(process.pid, 'SIGKILL'),
  hang: () => {
    for (;;);
  },
  throw: () => {
    throw new Error('no more registers');
  },
};

const backend: LinearBackend<'bf16'> = {
  kind: 'linear',
  name: 'wild',
  rules,
  priority: () => 1,
  footprint: () => ({ residentBytes: 0, preparePeakBytes: 0, workspaceBytes: () => 0 }),
  pack: (): Promise<PackedWeights> =>
    Promise.resolve({ layout: 'wild/nothing@1', [SCHEME]: ['bf16'], residentBytes: 0, handle: undefined, dispose: () => undefined }),
  unpack: () => {
    throw new Error('nothing was packed');
  },
  createKernel: (_linear, { id }) =>
    Promise.resolve({
      entry: { type: 'js-linear', run: deeds[id] ?? (() => undefined) },
      workspaceBytes: () => 0,
      dispose: () => undefined,
    }),
};

export default definePlugin({
  name: 'wild',
  version: '0.0.1',
  contract: contractVersion,
  apply: (host) => {
    host.addLinearBackend(backend);
  },
});
