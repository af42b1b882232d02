import type { ExpertSupportRule, LinearSupportRule, Refusal, SupportRule } from '../backend.js';
import type { ExpertGroupSpec, LayerSpec, LinearSpec, ParallelPlacement } from '../layer-spec.js';
import type { SchemeKey } from '../quant/quant-scheme.js';
import { activationRefusal, flagRefusal, formatRefusal, parallelRefusal, rangeRefusal, routingRefusal, sizeRefusal } from './dimensions.js';

/** The two differences between experts and linears that the oracle has to know; everything else is one generic function. */
export interface LayerKind<Spec extends LayerSpec, Rule extends SupportRule<SchemeKey>> {
  readonly kind: Spec['kind'];
  /** Scheme keys of the layer, in the order of its matrices, without repetition. */
  readonly schemes: (spec: Spec) => readonly SchemeKey[];
  /** Refusals on the dimensions that only this kind of rule has. */
  readonly refusals: (spec: Spec, rule: Rule) => Refusal[];
  /** What the answers of a backend may depend on: the spec without its name, place and rank. Equal specs are evaluated once. */
  readonly shape: (spec: Spec) => unknown;
}

export const moeKind: LayerKind<ExpertGroupSpec, ExpertSupportRule> = {
  kind: 'moe',
  schemes: ({ schemes: { w13, w2 } }) => (w13 === w2 ? [w13] : [w13, w2]),
  refusals: (spec, rule) => {
    // A kernel is given slots, so what limits it is the experts of its own group; only one that routes by itself sees them all.
    const numSlots = spec.experts.length;
    const { tpSize } = spec.parallel;
    return compact([
      flagRefusal(
        'mixedProjections',
        spec.schemes.w13 !== spec.schemes.w2,
        rule.mixedProjections,
        'different schemes for gate/up and down',
      ),
      activationRefusal(spec.activation, rule.activations),
      sizeRefusal('hiddenSize', 'hidden_size', spec.hiddenSize, rule.sizes.hiddenSize, 1) ??
        formatRefusal('hiddenSize', 'hidden_size', ['columns'], spec.hiddenSize, spec.schemes.w13, 1),
      sizeRefusal('moeIntermediateSize', 'moe_intermediate_size', spec.moeIntermediateSize, rule.sizes.moeIntermediateSize, tpSize) ??
        formatRefusal('moeIntermediateSize', 'moe_intermediate_size', ['columns'], spec.moeIntermediateSize, spec.schemes.w2, tpSize) ??
        formatRefusal('moeIntermediateSize', 'moe_intermediate_size', ['rows'], spec.moeIntermediateSize, spec.schemes.w13, tpSize),
      rangeRefusal('numExperts', 'experts', numSlots, rule.numExperts, fewerExperts(spec, rule)) ??
        (rule.routing === undefined ? undefined : rangeRefusal('numExperts', 'num_experts', spec.numExperts, rule.numExperts)),
      rangeRefusal('topK', 'top_k', spec.topK, rule.topK),
      routingRefusal(spec.routing, rule.routing),
      ...parallelRefusal(spec.parallel, rule.parallel),
      flagRefusal('bias', spec.hasBias, rule.bias, 'biases on the projections'),
    ]);
  },
  shape: (spec) => [
    spec.kind,
    spec.role,
    spec.schemes,
    spec.hiddenSize,
    spec.moeIntermediateSize,
    spec.numExperts,
    spec.experts.length,
    spec.topK,
    spec.activation,
    spec.hasBias,
    spec.routing,
    sizesOf(spec.parallel),
  ],
};

export const linearKind: LayerKind<LinearSpec, LinearSupportRule> = {
  kind: 'linear',
  schemes: (spec) => [spec.scheme],
  refusals: (spec, rule) => {
    const { inFeatures, outFeatures, modules, scheme, cut, parallel } = spec;
    const inTp = cut === 'inFeatures' ? parallel.tpSize : 1;
    const outTp = cut === 'outFeatures' ? parallel.tpSize : 1;
    // Fused modules keep their scales, so a block ends with its module.
    const rowFormat = modules.map((module) => formatRefusal('outFeatures', 'out_features', ['rows'], module.outFeatures, scheme, outTp));
    return compact([
      sizeRefusal('inFeatures', 'in_features', inFeatures, rule.sizes.inFeatures, inTp) ??
        formatRefusal('inFeatures', 'in_features', ['columns'], inFeatures, scheme, inTp),
      sizeRefusal('outFeatures', 'out_features', outFeatures, rule.sizes.outFeatures, outTp) ?? rowFormat.find((one) => one !== undefined),
      ...parallelRefusal(parallel, rule.parallel),
      flagRefusal('bias', spec.hasBias, rule.bias, 'a bias'),
    ]);
  },
  shape: (spec) => [
    spec.kind,
    spec.role,
    spec.scheme,
    spec.inFeatures,
    spec.outFeatures,
    spec.modules.map((module) => module.outFeatures),
    spec.cut,
    spec.hasBias,
    spec.cachedAs,
    sizesOf(spec.parallel),
  ],
};

/** The expert parallel size at which a rank holds as few experts as the rule takes. */
function fewerExperts({ experts, numExperts, parallel: { tpSize, epSize } }: ExpertGroupSpec, rule: ExpertSupportRule): string | undefined {
  const { max } = rule.numExperts;
  if (max === undefined || tpSize !== 1 || rule.routing !== undefined || rule.parallel?.includes('ep') !== true) return undefined;
  const needed = epSize * Math.ceil(experts.length / max);
  return needed > numExperts ? undefined : `expert parallel ${needed}`;
}

function sizesOf({ tpSize, epSize }: ParallelPlacement): readonly number[] {
  return [tpSize, epSize];
}

function compact(refusals: readonly (Refusal | undefined)[]): Refusal[] {
  return refusals.filter((refusal) => refusal !== undefined);
}
