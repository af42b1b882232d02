import { layerClassOf, schemeInfo } from '@moe-server/core';
import type { ExpertGroupSpec, LayerPlan, LayerSpec, ModelDescription, Plan, TimedRule } from '@moe-server/core';
import type { CalibrationCommand, ClassToMeasure } from './protocol.js';

/** A class with all that measuring it takes. */
export interface MeasurableClass extends ClassToMeasure {
  readonly layerPlan: LayerPlan;
  /** Of one call, ascending. */
  readonly sizes: readonly number[];
  readonly rules: readonly MeasurableRule[];
}

/** `min` and `max` lie within the sizes of the class. */
export interface MeasurableRule extends TimedRule {
  readonly layout: string;
  readonly numSizes: number;
}

/** Decode, several sequences, small chunks of prompts, large ones; the largest call comes on top. */
const usualSizes = [1, 4, 16, 64, 256];
/** Layers outside the decoder see one token per sequence that wants logits. */
const maxLogitRows = 64;
/** Packed experts of one class that are timed; more would cost time and memory, and no cache holds as many. */
const maxSampleBytes = 64 * 2 ** 20;
const minSampleExperts = 8;

/**
 * The classes of a model in which there is something to choose: two or more rules that are built and cover it.
 *
 * @param plan - made without preferences and evidence.
 * @param layoutOf - layout of a rule, as it declares it.
 */
export function classesToMeasure(
  { groups, linears }: ModelDescription,
  plan: Plan,
  { done, excluded }: Pick<CalibrationCommand, 'done' | 'excluded'>,
  layoutOf: (kind: LayerSpec['kind'], backend: string, rule: string) => string,
): MeasurableClass[] {
  const plans = new Map(plan.layers.map((layer) => [`${layer.kind} ${layer.name}`, layer]));
  const found = new Map<string, MeasurableClass & { numLayers: number }>();
  // The target's layers stand for the class where a draft has layers like them.
  const specs = [...groups, ...linears].sort((a, b) => Number(a.role === 'draft') - Number(b.role === 'draft'));
  for (const spec of specs) {
    const layerClass = layerClassOf(spec);
    const known = found.get(layerClass);
    if (known !== undefined) {
      known.numLayers += 1;
      continue;
    }
    const layerPlan = plans.get(`${spec.kind} ${spec.name}`);
    if (layerPlan === undefined || done.includes(layerClass)) continue;
    const sizes = sizesOf(spec, plan.maxNumTokens);
    const rules = rulesOf(layerPlan, sizes, layoutOf).filter(
      (rule) => !excluded.some((one) => one.layerClass === layerClass && one.backend === rule.backend && one.rule === rule.rule),
    );
    found.set(layerClass, { layerClass, scheme: layerPlan.scheme, numLayers: 1, spec, layerPlan, sizes, rules });
  }
  return [...found.values()].filter(({ rules }) => rules.length > 1);
}

/** How many times will be taken. */
export function countMeasurements(classes: readonly MeasurableClass[]): number {
  return classes.reduce((sum, { rules }) => sum + rules.reduce((part, { numSizes }) => part + numSizes, 0), 0);
}

/** The part of a group that is timed. Sizes of a matrix stay as they are, so a kernel cannot tell. */
export function sampleOf(group: ExpertGroupSpec): ExpertGroupSpec {
  const { hiddenSize, moeIntermediateSize, schemes, experts, topK } = group;
  const bits = Math.max(schemeInfo(schemes.w13)?.bitsPerWeight ?? 16, schemeInfo(schemes.w2)?.bitsPerWeight ?? 16);
  const expertBytes = (3 * hiddenSize * moeIntermediateSize * bits) / 8;
  const numExperts = Math.max(minSampleExperts, topK, Math.floor(maxSampleBytes / expertBytes));
  return numExperts >= experts.length ? group : { ...group, experts: experts.slice(0, numExperts) };
}

function sizesOf(spec: LayerSpec, maxNumTokens: number): number[] {
  const max = spec.kind === 'linear' && spec.layerIndex === undefined ? Math.min(maxLogitRows, maxNumTokens) : maxNumTokens;
  return [...usualSizes.filter((size) => size < max), max];
}

function rulesOf(
  { kind, bindings, eligible }: LayerPlan,
  sizes: readonly number[],
  layoutOf: (kind: LayerSpec['kind'], backend: string, rule: string) => string,
): MeasurableRule[] {
  const largest = sizes[sizes.length - 1] ?? 1;
  const rules = new Map<string, MeasurableRule>();
  // In the order of the plan, best first: what comes first is likely the fastest and shows soon what is too slow.
  for (const { backend, rule, built, tokens } of [...bindings, ...eligible]) {
    const key = `${backend}/${rule}`;
    const { min = 1, max = largest } = tokens;
    const numSizes = sizes.filter((size) => min <= size && size <= max).length;
    if (!built || rules.has(key) || numSizes === 0) continue;
    rules.set(key, { backend, rule, layout: layoutOf(kind, backend, rule), min, max: Math.min(max, largest), numSizes });
  }
  return [...rules.values()];
}
