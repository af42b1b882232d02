import type { Arithmetic } from '../arithmetic.js';
import type { ExpertMatrices, Kernel } from '../backend.js';
import type { ExpertGroupSpec, LinearSpec } from '../layer-spec.js';
import { referenceExperts, referenceLinear } from './reference-layers.js';
import type { MatrixDecoder, ReferenceLinearCall } from './reference-layers.js';

/**
 * The reference as a kernel: a plain function for devices that run those.
 *
 * @param experts - by slot.
 */
export function referenceExpertsKernel(
  group: ExpertGroupSpec,
  arithmetic: Arithmetic,
  experts: readonly ExpertMatrices[],
  decode: MatrixDecoder,
): Kernel {
  return kernelOf({
    type: 'js-experts',
    run: (args) => {
      writeOutput(args.output, referenceExperts({ ...args, group, arithmetic, experts, decode }), args.accumulate);
    },
  });
}

/** As {@link referenceExpertsKernel}. @param modules - in the order of their rows in the output. */
export function referenceLinearKernel(
  linear: LinearSpec,
  arithmetic: Arithmetic,
  modules: ReferenceLinearCall['modules'],
  decode: MatrixDecoder,
): Kernel {
  return kernelOf({
    type: 'js-linear',
    run: (args) => {
      writeOutput(args.output, referenceLinear({ ...args, linear, arithmetic, modules, decode }), args.accumulate);
    },
  });
}

function kernelOf(entry: Kernel['entry']): Kernel {
  return { entry, workspaceBytes: () => 0, dispose: () => undefined };
}

function writeOutput(output: Float32Array, contribution: Float64Array, accumulate: boolean): void {
  for (let i = 0; i < contribution.length; i++) {
    const value = contribution[i]!;
    output[i] = accumulate ? output[i]! + value : value;
  }
}
