import type {
  DeviceInfo,
  ExpertGroupSpec,
  ExpertMatrices,
  ExpertSupportRule,
  ExpertWeights,
  Footprint,
  Kernel,
  MoeBackend,
  PackContext,
  PackedWeights,
} from '@moe-server/core';
import { expertSourceBytes, inputRowBytes, MoeError, packedExpertsBytes, packExperts, priorityBands, unpackExpert } from '@moe-server/core';
import type { B12xScheme } from './support.js';
import { expertRules, layout } from './support.js';

const notBuilt = 'this release of @moe-server/backend-b12x has rules and weight layouts, and no CUDA kernels yet.';

/** NVFP4 experts on SM 12.0 and 12.1. */
export class B12xMoeBackend implements MoeBackend<B12xScheme> {
  readonly kind = 'moe';
  readonly name = 'b12x';
  readonly rules = expertRules;

  /** Where it fits it comes first; quantized inputs, which the instructions are for, before 16-bit ones. */
  readonly priority = (_group: ExpertGroupSpec, rule: ExpertSupportRule<B12xScheme>, _device: DeviceInfo): number =>
    priorityBands.specialized - (rule.id === 'nvfp4-wider' ? 10 : 0);

  readonly missing = (): string => notBuilt;

  readonly footprint = (group: ExpertGroupSpec, rule: ExpertSupportRule<B12xScheme>): Footprint => ({
    residentBytes: packedExpertsBytes(layout, group),
    preparePeakBytes: expertSourceBytes(group),
    workspaceBytes: (numTokens) => workspaceBytes(group, rule, numTokens),
  });

  readonly pack = (
    group: ExpertGroupSpec,
    _rule: ExpertSupportRule<B12xScheme>,
    weights: ExpertWeights<B12xScheme>,
    context: PackContext,
  ): Promise<PackedWeights> => packExperts(layout, group, weights, context);

  readonly unpack = (group: ExpertGroupSpec, packed: PackedWeights, slot: number): ExpertMatrices<B12xScheme> =>
    unpackExpert(layout, group, packed, slot);

  /** @throws {MoeError} MOE_PLUGIN_ADDON: see `missing`. */
  readonly createKernel = (group: ExpertGroupSpec, rule: ExpertSupportRule<B12xScheme>): Promise<Kernel> =>
    Promise.reject(
      new MoeError('MOE_PLUGIN_ADDON', `b12x/${rule.id} cannot run ${group.name}: ${notBuilt}`, { layer: group.name, rule: rule.id }),
    );
}

/**
 * Rows are sorted by expert, and each expert's are padded to the 128 of an atom of scales. A row takes its input and its intermediate, both in the
 * form that meets the weights, and eight bytes of bookkeeping; gate and up never leave the registers.
 */
function workspaceBytes(
  { hiddenSize, moeIntermediateSize, topK, experts, schemes }: ExpertGroupSpec,
  { arithmetic }: ExpertSupportRule,
  numTokens: number,
): number {
  const pairs = numTokens * topK;
  const rows = pairs + 127 * Math.min(pairs, experts.length);
  const rowBytes = inputRowBytes(arithmetic, schemes.w13, hiddenSize) + inputRowBytes(arithmetic, schemes.w2, moeIntermediateSize);
  return rows * (rowBytes + 8) + 4 * experts.length;
}
