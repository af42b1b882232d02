import type { LinearWeights } from '../backend.js';
import { MoeError } from '../errors.js';
import type { LinearSpec } from '../layer-spec.js';
import type { Checkpoint } from './checkpoint.js';
import { biasValues, requireSingleRank } from './expert-weights.js';
import { checkTensor, locateModule } from './module-tensors.js';
import { readMatrices } from './read-matrix.js';

/**
 * Lazy access to the modules of a linear, each with its own scales.
 *
 * @param linear - made by describeModel for the same checkpoint.
 * @throws {MoeError} MOE_CHECKPOINT_TENSOR from `module` when tensors contradict the linear; MOE_UNSUPPORTED_PARALLEL for one that is cut
 *   over ranks.
 */
export function openLinearWeights(checkpoint: Checkpoint, linear: LinearSpec): LinearWeights {
  requireSingleRank(linear.name, linear.parallel);
  return {
    numModules: linear.modules.length,
    module: async (index, into) => {
      into?.clear();
      const module = linear.modules[index];
      if (module === undefined) {
        throw new MoeError(
          'MOE_INTERNAL',
          `Module ${String(index)} of ${linear.name} was asked for; it has ${String(linear.modules.length)}.`,
          { index },
        );
      }
      const located = locateModule(checkpoint, module.name, linear.scheme, module.outFeatures, linear.inFeatures);
      const [matrix] = await readMatrices(checkpoint, [located], into);
      const bias = linear.hasBias ? await readBias(checkpoint, module.name, module.outFeatures) : undefined;
      return { matrix: matrix!, bias };
    },
  };
}

async function readBias(checkpoint: Checkpoint, module: string, outFeatures: number): Promise<Float32Array> {
  const info = checkTensor(checkpoint.tensor(`${module}.bias`), ['bf16', 'f16', 'f32'], [[outFeatures]], 'as the bias of the module');
  return biasValues(info, await checkpoint.read(info.name));
}
