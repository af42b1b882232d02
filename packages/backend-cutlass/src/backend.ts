import type {
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
import type { CutlassScheme } from './support.js';
import { expertRules, layout, linearRules } from './support.js';
import { expertsWorkspaceBytes, linearWorkspaceBytes } from './workspace.js';

const notBuilt = 'this release of @moe-server/backend-cutlass has rules and weight layouts, and no CUDA kernels yet.';

/** Experts: grouped GEMMs over tokens sorted by expert. */
export class CutlassMoeBackend implements MoeBackend<CutlassScheme> {
  readonly kind = 'moe';
  readonly name = 'cutlass';
  readonly rules = expertRules;

  readonly priority = (group: ExpertGroupSpec, rule: ExpertSupportRule<CutlassScheme>): number => priorityOf(group.schemes.w13, rule);

  readonly missing = (): string => notBuilt;

  readonly footprint = (group: ExpertGroupSpec, rule: ExpertSupportRule<CutlassScheme>): Footprint => ({
    residentBytes: packedExpertsBytes(layout, group),
    preparePeakBytes: expertSourceBytes(group),
    workspaceBytes: (numTokens) => expertsWorkspaceBytes(group, rule, numTokens),
  });

  readonly pack = (
    group: ExpertGroupSpec,
    _rule: ExpertSupportRule<CutlassScheme>,
    weights: ExpertWeights<CutlassScheme>,
    context: PackContext,
  ): Promise<PackedWeights> => packExperts(layout, group, weights, context);

  readonly unpack = (group: ExpertGroupSpec, packed: PackedWeights, slot: number): ExpertMatrices<CutlassScheme> =>
    unpackExpert(layout, group, packed, slot);

  /** @throws {MoeError} MOE_PLUGIN_ADDON: see `missing`. */
  readonly createKernel = (group: ExpertGroupSpec, rule: ExpertSupportRule<CutlassScheme>): Promise<Kernel> =>
    noKernel(group.name, rule.id);
}

/** Linears: attention projections, dense layers, shared experts, the vocabulary. */
export class CutlassLinearBackend implements LinearBackend<CutlassScheme> {
  readonly kind = 'linear';
  readonly name = 'cutlass';
  readonly rules = linearRules;

  readonly priority = (linear: LinearSpec, rule: LinearSupportRule<CutlassScheme>): number => priorityOf(linear.scheme, rule);

  readonly missing = (): string => notBuilt;

  readonly footprint = (linear: LinearSpec, rule: LinearSupportRule<CutlassScheme>): Footprint => ({
    residentBytes: packedLinearBytes(layout, linear),
    preparePeakBytes: moduleSourceBytes(linear),
    workspaceBytes: (numTokens) => linearWorkspaceBytes(linear, rule, numTokens),
  });

  readonly pack = (
    linear: LinearSpec,
    _rule: LinearSupportRule<CutlassScheme>,
    weights: LinearWeights<CutlassScheme>,
    context: PackContext,
  ): Promise<PackedWeights> => packLinear(layout, linear, weights, context);

  readonly unpack = (linear: LinearSpec, packed: PackedWeights): readonly SchemeRegistry[CutlassScheme][] =>
    // What comes back is what was packed, and only weights of these schemes are handed to this backend.
    unpackLinear(layout, linear, packed) as readonly SchemeRegistry[CutlassScheme][];

  /** @throws {MoeError} MOE_PLUGIN_ADDON: see `missing`. */
  readonly createKernel = (linear: LinearSpec, rule: LinearSupportRule<CutlassScheme>): Promise<Kernel> => noKernel(linear.name, rule.id);
}

function noKernel(layer: string, rule: string): Promise<never> {
  return Promise.reject(new MoeError('MOE_PLUGIN_ADDON', `cutlass/${rule} cannot run ${layer}: ${notBuilt}`, { layer, rule }));
}
