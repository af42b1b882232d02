import type {
  DeviceInfo,
  ExpertGroupSpec,
  ExpertMatrices,
  ExpertSupportRule,
  ExpertWeights,
  Footprint,
  Kernel,
  LinearBackend,
  LinearSpec,
  LinearSupportRule,
  LinearWeights,
  MoeBackend,
  PackContext,
  PackedWeights,
  SchemeRegistry,
} from '@moe-server/core';
import {
  expertSourceBytes,
  moduleSourceBytes,
  MoeError,
  packedExpertsBytes,
  packedLinearBytes,
  packExperts,
  packLinear,
  unpackExpert,
  unpackLinear,
} from '@moe-server/core';
import { priorityOf } from './priority.js';
import type { TritonScheme } from './support.js';
import { expertRules, layout, linearRules } from './support.js';
import { expertsWorkspaceBytes, linearWorkspaceBytes } from './workspace.js';

const notBuilt = 'this release of @moe-server/backend-triton has rules and weight layouts, and no CUDA kernels yet.';

/** Experts: one kernel source for every device. */
export class TritonMoeBackend implements MoeBackend<TritonScheme> {
  readonly kind = 'moe';
  readonly name = 'triton';
  readonly rules = expertRules;

  readonly priority = (group: ExpertGroupSpec, rule: ExpertSupportRule<TritonScheme>, device: DeviceInfo): number =>
    priorityOf(group.schemes.w13, rule, device);

  readonly missing = (): string => notBuilt;

  readonly footprint = (group: ExpertGroupSpec, rule: ExpertSupportRule<TritonScheme>): Footprint => ({
    residentBytes: packedExpertsBytes(layout, group),
    preparePeakBytes: expertSourceBytes(group),
    workspaceBytes: (numTokens) => expertsWorkspaceBytes(group, rule, numTokens),
  });

  readonly pack = (
    group: ExpertGroupSpec,
    _rule: ExpertSupportRule<TritonScheme>,
    weights: ExpertWeights<TritonScheme>,
    context: PackContext,
  ): Promise<PackedWeights> => packExperts(layout, group, weights, context);

  readonly unpack = (group: ExpertGroupSpec, packed: PackedWeights, slot: number): ExpertMatrices<TritonScheme> =>
    unpackExpert(layout, group, packed, slot);

  /** @throws {MoeError} MOE_PLUGIN_ADDON: see `missing`. */
  readonly createKernel = (group: ExpertGroupSpec, rule: ExpertSupportRule<TritonScheme>): Promise<Kernel> => noKernel(group.name, rule.id);
}

/** Linears: attention projections, dense layers, shared experts, the vocabulary. */
export class TritonLinearBackend implements LinearBackend<TritonScheme> {
  readonly kind = 'linear';
  readonly name = 'triton';
  readonly rules = linearRules;

  readonly priority = (linear: LinearSpec, rule: LinearSupportRule<TritonScheme>, device: DeviceInfo): number =>
    priorityOf(linear.scheme, rule, device);

  readonly missing = (): string => notBuilt;

  readonly footprint = (linear: LinearSpec, rule: LinearSupportRule<TritonScheme>): Footprint => ({
    residentBytes: packedLinearBytes(layout, linear),
    preparePeakBytes: moduleSourceBytes(linear),
    workspaceBytes: (numTokens) => linearWorkspaceBytes(linear, rule, numTokens),
  });

  readonly pack = (
    linear: LinearSpec,
    _rule: LinearSupportRule<TritonScheme>,
    weights: LinearWeights<TritonScheme>,
    context: PackContext,
  ): Promise<PackedWeights> => packLinear(layout, linear, weights, context);

  readonly unpack = (linear: LinearSpec, packed: PackedWeights): readonly SchemeRegistry[TritonScheme][] =>
    // What comes back is what was packed, and only weights of these schemes are handed to this backend.
    unpackLinear(layout, linear, packed) as readonly SchemeRegistry[TritonScheme][];

  /** @throws {MoeError} MOE_PLUGIN_ADDON: see `missing`. */
  readonly createKernel = (linear: LinearSpec, rule: LinearSupportRule<TritonScheme>): Promise<Kernel> => noKernel(linear.name, rule.id);
}

function noKernel(layer: string, rule: string): Promise<never> {
  return Promise.reject(new MoeError('MOE_PLUGIN_ADDON', `triton/${rule} cannot run ${layer}: ${notBuilt}`, { layer, rule }));
}
