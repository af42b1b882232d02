import type { Kernel, LinearBackend, MoeBackend, SchemeKey } from '@moe-server/core';
import { deviceProfile } from '@moe-server/core';
import { describeLinearBackend, describeMoeBackend, referenceExperts, referenceLinear } from '@moe-server/core/conformance';
import { B12xMoeBackend } from '@moe-server/backend-b12x';
import { CutlassLinearBackend, CutlassMoeBackend } from '@moe-server/backend-cutlass';
import { TritonLinearBackend, TritonMoeBackend } from '@moe-server/backend-triton';

/**
 * The suite that every backend passes, on kernels that compute what the rules of the GPU families declare: sizes that rules allow must pack and unpack,
 * and what is declared must be a number. Their real kernels take this place as they are built.
 */

function simulatedExperts<S extends SchemeKey>(backend: MoeBackend<S>): MoeBackend<S> {
  return {
    ...backend,
    missing: () => undefined,
    createKernel: (group, rule, packed) => {
      const experts = group.experts.map((_, slot) => backend.unpack(group, packed, slot));
      const { workspaceBytes } = backend.footprint(group, rule);
      return Promise.resolve<Kernel>({
        entry: {
          type: 'js-experts',
          run: (args) => {
            write(args.output, referenceExperts({ ...args, group, arithmetic: rule.arithmetic, experts }), args.accumulate);
          },
        },
        workspaceBytes,
        dispose: () => undefined,
      });
    },
  };
}

function simulatedLinear<S extends SchemeKey>(backend: LinearBackend<S>): LinearBackend<S> {
  // Biases are no part of what `unpack` gives back.
  const biases = new WeakMap<object, (Float32Array | undefined)[]>();
  return {
    ...backend,
    missing: () => undefined,
    pack: async (linear, rule, weights, context) => {
      const read: (Float32Array | undefined)[] = [];
      const module = async (index: number): ReturnType<typeof weights.module> => {
        const one = await weights.module(index);
        read[index] = one.bias?.slice();
        return one;
      };
      const packed = await backend.pack(linear, rule, { numModules: weights.numModules, module }, context);
      biases.set(packed, read);
      return packed;
    },
    createKernel: (linear, rule, packed) => {
      const modules = backend.unpack(linear, packed).map((matrix, index) => ({ matrix, bias: biases.get(packed)?.[index] }));
      const { workspaceBytes } = backend.footprint(linear, rule);
      return Promise.resolve<Kernel>({
        entry: {
          type: 'js-linear',
          run: (args) => {
            write(args.output, referenceLinear({ ...args, linear, arithmetic: rule.arithmetic, modules }), args.accumulate);
          },
        },
        workspaceBytes,
        dispose: () => undefined,
      });
    },
  };
}

function write(output: Float32Array, values: Float64Array, accumulate: boolean): void {
  for (const [i, value] of values.entries()) output[i] = (accumulate ? output[i]! : 0) + value;
}

const device = deviceProfile('gb10');

describeMoeBackend({ name: 'b12x, simulated', device, create: () => simulatedExperts(new B12xMoeBackend()) });
describeMoeBackend({ name: 'cutlass, simulated', device, create: () => simulatedExperts(new CutlassMoeBackend()) });
describeMoeBackend({ name: 'triton, simulated', device, create: () => simulatedExperts(new TritonMoeBackend()) });
describeLinearBackend({ name: 'cutlass, simulated', device, create: () => simulatedLinear(new CutlassLinearBackend()) });
describeLinearBackend({ name: 'triton, simulated', device, create: () => simulatedLinear(new TritonLinearBackend()) });
