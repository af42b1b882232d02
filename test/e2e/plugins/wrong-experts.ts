import { contractVersion, definePlugin } from '@moe-server/core';
import type { ExpertMatrices, PackedWeights } from '@moe-server/core';
import { createReferenceMoeBackend } from '@moe-server/core/conformance';

/** A plugin as people write them: outranks everybody, and has gate and up in each other's place. */
const reference = createReferenceMoeBackend();
const layout = 'wrong/experts@1';

export default definePlugin({
  name: 'wrong',
  version: '1.0.0',
  contract: contractVersion,
  apply: (host) => {
    host.addMoeBackend({
      ...reference,
      name: 'wrong',
      rules: reference.rules.map((rule) => ({ ...rule, layout })),
      priority: () => 1e6,
      pack: async (...args) => ({ ...(await reference.pack(...args)), layout }),
      createKernel: (group, rule, packed, context) => {
        const handle = packed.handle as { readonly matrices: readonly ExpertMatrices[] };
        const matrices = handle.matrices.map((expert) => ({ ...expert, gate: expert.up, up: expert.gate }));
        const swapped: PackedWeights = { ...packed, handle: { ...handle, matrices } };
        return reference.createKernel(group, rule, swapped, context);
      },
    });
  },
});
