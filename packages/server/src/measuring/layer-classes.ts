import { dotTypeOf, layerClassOf, schemeInfo } from '@moe-server/core';
import type { Arithmetic, DotType, ExpertGroupSpec, LayerPlan, LayerSpec, LinearSpec, ModelDescription, Plan } from '@moe-server/core';
import type { ClassToMeasure, MeasuringCommand, RuleToMeasure, Selection } from './protocol.js';

/** A class with all that measuring it takes. */
export interface MeasurableClass extends ClassToMeasure {
  readonly layerPlan: LayerPlan;
  /** Of one call, ascending. */
  readonly sizes: readonly number[];
  readonly rules: readonly MeasurableRule[];
}

/** `min` and `max` lie within the sizes of the class. */
export interface MeasurableRule extends RuleToMeasure {
  readonly layout: string;
  readonly numSizes: number;
}

/** What a rule declares, as far as measuring asks. */
export interface RuleFacts {
  readonly layout: string;
  readonly arithmetic: Arithmetic;
}

type FindRule = (kind: LayerSpec['kind'], backend: string, rule: string) => RuleFacts | undefined;

/** Decode, several sequences, small chunks of prompts, large ones; the largest call comes on top. */
const usualSizes = [1, 4, 16, 64, 256];
/** Layers outside the decoder see one token per sequence that wants logits. */
const maxLogitRows = 64;
/** Packed experts of one class that are timed; more would cost time and memory. Where figures are held against memory, more than caches hold. */
const maxSampleBytes = { choices: 64 * 2 ** 20, all: 128 * 2 ** 20 } as const;
const minSampleExperts = 8;
/** A vocabulary projection has no rows that others do not have. */
const maxSampleRows = 16_384;
/** More copies of a small linear would mostly take time to pack. */
const maxCopies = 64;

/**
 * The classes of a model with the rules that are built and cover them.
 *
 * @param plan - made without preferences and evidence.
 * @param findRule - what a rule declares.
 */
export function classesToMeasure(
  { groups, linears }: Pick<ModelDescription, 'groups' | 'linears'>,
  plan: Plan,
  { done, excluded }: Pick<MeasuringCommand, 'done' | 'excluded'>,
  findRule: FindRule,
  selection: Selection,
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
    if (layerPlan === undefined || done.includes(layerClass) || !isWanted(spec, selection)) continue;
    const sizes = sizesOf(spec, plan.maxNumTokens, selection);
    const rules = rulesOf(layerPlan, spec, sizes, findRule).filter(
      ({ backend, rule }) =>
        (selection.type === 'choices' || selection.backends.length === 0 || selection.backends.includes(backend)) &&
        !excluded.some((one) => one.layerClass === layerClass && one.backend === backend && one.rule === rule),
    );
    found.set(layerClass, { layerClass, scheme: layerPlan.scheme, numLayers: 1, spec, layerPlan, sizes, rules });
  }
  const fewest = selection.type === 'choices' ? 2 : 1;
  return [...found.values()].filter(({ rules }) => rules.length >= fewest);
}

function isWanted(spec: LayerSpec, selection: Selection): boolean {
  if (selection.type === 'choices' || selection.schemes.length === 0) return true;
  return selection.schemes.includes(spec.kind === 'moe' ? spec.schemes.w13 : spec.scheme);
}

/** How many times will be taken. */
export function countMeasurements(classes: readonly MeasurableClass[]): number {
  return classes.reduce((sum, { rules }) => sum + rules.reduce((part, { numSizes }) => part + numSizes, 0), 0);
}

/** The part of a group that is timed. Sizes of a matrix stay as they are, so a kernel cannot tell. */
export function sampleOf(group: ExpertGroupSpec, selection: Selection['type']): ExpertGroupSpec {
  const { hiddenSize, moeIntermediateSize, schemes, experts, topK } = group;
  const bits = Math.max(bitsOf(schemes.w13), bitsOf(schemes.w2));
  const expertBytes = (3 * hiddenSize * moeIntermediateSize * bits) / 8;
  const numExperts = Math.max(minSampleExperts, topK, Math.floor(maxSampleBytes[selection] / expertBytes));
  return numExperts >= experts.length ? group : { ...group, experts: experts.slice(0, numExperts) };
}

/** A linear outside the decoder with fewer rows; others as they are. */
export function cutLinear(linear: LinearSpec): LinearSpec {
  const [first] = linear.modules;
  if (linear.layerIndex !== undefined || first === undefined || linear.modules.length > 1 || linear.outFeatures <= maxSampleRows)
    return linear;
  return { ...linear, outFeatures: maxSampleRows, modules: [{ ...first, outFeatures: maxSampleRows }] };
}

/** How many times a linear is packed, so that calls in turn find its weights in memory and not in a cache. */
export function numCopiesOf({ inFeatures, outFeatures, scheme }: LinearSpec): number {
  return Math.min(maxCopies, Math.ceil(maxSampleBytes.all / ((inFeatures * outFeatures * bitsOf(scheme)) / 8)));
}

function bitsOf(scheme: string): number {
  return schemeInfo(scheme)?.bitsPerWeight ?? 16;
}

function sizesOf(spec: LayerSpec, maxNumTokens: number, selection: Selection): number[] {
  const max = spec.kind === 'linear' && spec.layerIndex === undefined ? Math.min(maxLogitRows, maxNumTokens) : maxNumTokens;
  return selection.type === 'all' ? selection.sizes.filter((size) => size <= max) : [...usualSizes.filter((size) => size < max), max];
}

function rulesOf({ kind, bindings, eligible }: LayerPlan, spec: LayerSpec, sizes: readonly number[], findRule: FindRule): MeasurableRule[] {
  const largest = sizes[sizes.length - 1] ?? 1;
  const rules = new Map<string, MeasurableRule>();
  // In the order of the plan, best first: what comes first is likely the fastest and shows soon what is too slow.
  for (const { backend, rule, built, tokens } of [...bindings, ...eligible]) {
    const key = `${backend}/${rule}`;
    const { min = 1, max = largest } = tokens;
    const numSizes = sizes.filter((size) => min <= size && size <= max).length;
    const facts = findRule(kind, backend, rule);
    if (!built || rules.has(key) || numSizes === 0 || facts === undefined) continue;
    const { layout, arithmetic } = facts;
    rules.set(key, { backend, rule, layout, min, max: Math.min(max, largest), numSizes, dots: dotsOf(spec, arithmetic) });
  }
  return [...rules.values()];
}

/** Two projections of different schemes count as the first, which is two thirds of the work. */
function dotsOf(spec: LayerSpec, arithmetic: Arithmetic): DotType {
  const info = schemeInfo(spec.kind === 'moe' ? spec.schemes.w13 : spec.scheme);
  return info === undefined ? 'f32' : dotTypeOf(info, arithmetic);
}
