/** Backends for the checks of kernels: the reference's, outranked by one that does something wrong. */
import type { ExpertMatrices, Kernel, LinearBackend, MoeBackend, PackedWeights } from '../../src/backend.js';
import { createReferenceLinearBackend, createReferenceMoeBackend } from '../../src/conformance/index.js';
import type { CpuDeviceInfo } from '../../src/device-info.js';
import type { KernelRunner } from '../../src/verification/kernel-runner.js';

export const cpu: CpuDeviceInfo = {
  type: 'cpu',
  name: 'a processor',
  architecture: 'x64',
  features: [],
  numThreads: 1,
  memoryBytes: undefined,
};

/** Runs plain functions, also those that stand for native code: `external` is the function then. */
export function countingRunner(): KernelRunner & { numCalls: number } {
  const runner: KernelRunner & { numCalls: number } = {
    numCalls: 0,
    runExperts: async (kernel, { hiddenSize }, call) => {
      runner.numCalls++;
      const output = new Float32Array(call.numTokens * hiddenSize);
      await Promise.resolve();
      runOf(kernel)({ ...call, output, accumulate: false });
      return output;
    },
    runLinear: async (kernel, { outFeatures }, call) => {
      runner.numCalls++;
      const output = new Float32Array(call.numTokens * outFeatures);
      await Promise.resolve();
      runOf(kernel)({ ...call, output, accumulate: false });
      return output;
    },
  };
  return runner;
}

function runOf({ entry }: Kernel): (args: unknown) => void {
  return (entry.type === 'native' ? entry.external : entry.run) as (args: unknown) => void;
}

/** The same kernel, as far as a check can tell native. */
export function asNative(kernel: Kernel): Kernel {
  return { ...kernel, entry: { type: 'native', external: runOf(kernel) } };
}

/** The reference's experts in another name, with another kernel, before all others. Reads the layout of the reference. */
export function outranking(name: string, change: (kernel: Kernel) => Kernel, numbers: Partial<MoeBackend> = {}): MoeBackend {
  const right = createReferenceMoeBackend();
  return {
    ...right,
    name,
    priority: () => 1000,
    createKernel: async (...args) => change(await right.createKernel(...args)),
    ...numbers,
  };
}

/** Gate and up in each other's place: the mistake that every packing of w13 invites. */
export function withSwappedGateAndUp(name: string): MoeBackend {
  const right = createReferenceMoeBackend();
  return outranking(name, (kernel) => kernel, {
    createKernel: (group, rule, packed, context) => {
      const handle = packed.handle as { readonly matrices: readonly ExpertMatrices[] };
      const matrices = handle.matrices.map((expert) => ({ ...expert, gate: expert.up, up: expert.gate }));
      const swapped: PackedWeights = { ...packed, handle: { ...handle, matrices } };
      return right.createKernel(group, rule, swapped, context);
    },
  });
}

/** Adds to one column of the output, of a linear. */
export function linearWithWrongColumn(name: string, column: number, error: number): LinearBackend {
  const right = createReferenceLinearBackend();
  return {
    ...right,
    name,
    priority: () => 1000,
    createKernel: async (...args) => {
      const kernel = await right.createKernel(...args);
      const { entry } = kernel;
      if (entry.type !== 'js-linear') throw new TypeError('expected a plain function');
      return {
        ...kernel,
        entry: {
          type: 'js-linear',
          run: (call) => {
            entry.run(call);
            call.output[column] = (call.output[column] ?? NaN) + error;
          },
        },
      };
    },
  };
}

/** Runs `then` on the output of an experts kernel. */
export function afterwards(kernel: Kernel, then: (output: Float32Array) => void): Kernel {
  const { entry } = kernel;
  if (entry.type !== 'js-experts') throw new TypeError('expected a plain function');
  return {
    ...kernel,
    entry: {
      type: 'js-experts',
      run: (call) => {
        entry.run(call);
        then(call.output);
      },
    },
  };
}
