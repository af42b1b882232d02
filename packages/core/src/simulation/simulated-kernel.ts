import type { Arithmetic } from '../arithmetic.js';
import type { ExpertMatrices, Kernel } from '../backend.js';
import type { ExpertGroupSpec, LinearSpec } from '../layer-spec.js';
import { decodeWeights } from '../quant/decode-weights.js';
import type { SchemeKey, SchemeRegistry } from '../quant/quant-scheme.js';
import { referenceExpertsKernel, referenceLinearKernel } from '../reference/reference-kernels.js';
import type { MatrixDecoder, ReferenceLinearCall } from '../reference/reference-layers.js';

/**
 * A kernel that computes what a rule declares, on any machine: the reference, with the roundings of `arithmetic`. What a simulated device lacks
 * against the real one is the order of sums; of requantized weights it takes the stored values, because only the kernel knows the new ones.
 *
 * @param experts - by slot, as `unpack` gives them back. Decoded here, once: the kernel's memory is four bytes a weight.
 * @throws {MoeError} MOE_UNSUPPORTED_QUANTIZATION for a scheme that the core cannot decode.
 */
export function simulateExperts(group: ExpertGroupSpec, arithmetic: Arithmetic, experts: readonly ExpertMatrices[]): Kernel {
  return referenceExpertsKernel(group, arithmetic, experts, decodedNow(experts.flatMap(({ gate, up, down }) => [gate, up, down])));
}

/** As {@link simulateExperts}. @param modules - in the order of their rows in the output. */
export function simulateLinear(linear: LinearSpec, arithmetic: Arithmetic, modules: ReferenceLinearCall['modules']): Kernel {
  return referenceLinearKernel(linear, arithmetic, modules, decodedNow(modules.map(({ matrix }) => matrix)));
}

function decodedNow(matrices: readonly SchemeRegistry[SchemeKey][]): MatrixDecoder {
  const values = new Map(matrices.map((matrix) => [matrix, decodeWeights(matrix)]));
  return (matrix) => values.get(matrix) ?? decodeWeights(matrix);
}
