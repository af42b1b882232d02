import type { DotType, LayerSpec, MeasuredClass } from '@moe-server/core';
import { dotRate } from '@moe-server/engine';
import type { CpuRates } from '@moe-server/engine';
import type { ClassToMeasure, ClassWork } from './protocol.js';

/** One rule at one size, against what the machine could do. */
export interface KernelFigure {
  readonly backend: string;
  readonly rule: string;
  readonly numTokens: number;
  readonly medianUs: number;
  readonly spreadUs: number;
  /** Not timed but scaled from the size before: the call would have taken too long. */
  readonly isEstimate: boolean;
  /** Packed weights that a call reads: all of a linear, those of the experts that its tokens chose. */
  readonly bytes: number;
  /** A product and its sum are two. */
  readonly operations: number;
  /** What is multiplied. */
  readonly dots: DotType;
  /** 1e9 bytes a second. */
  readonly bandwidth: number;
  /** 1e9 operations a second. */
  readonly rate: number;
  /** Reading or multiplying alone, whichever takes longer. */
  readonly floorUs: number;
  readonly boundBy: 'memory' | 'products';
  /** 0 to 1. */
  readonly ofFloor: number;
}

/** A class of layers with everything that was timed on it. */
export interface ClassFigures {
  readonly layer: string;
  readonly layerClass: string;
  readonly kind: LayerSpec['kind'];
  readonly scheme: string;
  /** `64 experts of 1024 x 384, top-8`. */
  readonly sizes: string;
  readonly numLayers: number;
  /** By size, then the fastest first. */
  readonly figures: readonly KernelFigure[];
}

/** Holds the times of a class against the machine's rates. */
export function classFiguresOf(one: ClassToMeasure, measured: MeasuredClass, work: ClassWork, rates: CpuRates): ClassFigures {
  const { spec, layerClass, scheme, numLayers, rules } = one;
  const figures = measured.times.flatMap(({ backend, rule, numTokens, medianUs, spreadUs = 0, isEstimate = false }): KernelFigure[] => {
    const facts = rules.find((known) => known.backend === backend && known.rule === rule);
    const weights = work.weights.find((known) => known.backend === backend && known.rule === rule);
    const call = callOf(spec, work, numTokens);
    if (facts === undefined || weights === undefined || call === undefined) return [];
    const bytes = call.numParts * weights.bytes;
    const memoryUs = bytes / rates.bandwidth / 1e3;
    const productsUs = call.operations / dotRate(rates, facts.dots) / 1e3;
    const floorUs = Math.max(memoryUs, productsUs);
    return [
      {
        ...{ backend, rule, numTokens, medianUs, spreadUs, isEstimate, bytes },
        operations: call.operations,
        dots: facts.dots,
        bandwidth: bytes / medianUs / 1e3,
        rate: call.operations / medianUs / 1e3,
        floorUs,
        boundBy: memoryUs >= productsUs ? 'memory' : 'products',
        ofFloor: floorUs / medianUs,
      },
    ];
  });
  figures.sort((a, b) => a.numTokens - b.numTokens || a.medianUs - b.medianUs);
  return { layer: spec.name, layerClass, kind: spec.kind, scheme, sizes: sizesText(spec, work), numLayers, figures };
}

/** The middle between what was measured before and after. */
export function meanRates(before: CpuRates, after: CpuRates): CpuRates {
  const mean = (a: number | undefined, b: number | undefined): number | undefined =>
    a === undefined || b === undefined ? undefined : (a + b) / 2;
  return {
    numThreads: before.numThreads,
    bandwidth: (before.bandwidth + after.bandwidth) / 2,
    dots: {
      int8: mean(before.dots.int8, after.dots.int8),
      bf16: mean(before.dots.bf16, after.dots.bf16),
      f32: mean(before.dots.f32, after.dots.f32),
    },
  };
}

/** `numParts`: how many times the packed bytes of a part, a linear or an expert, are read. */
function callOf(
  spec: LayerSpec,
  work: ClassWork,
  numTokens: number,
): { readonly numParts: number; readonly operations: number } | undefined {
  if (spec.kind === 'linear') {
    return { numParts: 1, operations: 2 * numTokens * spec.inFeatures * (work.outFeatures ?? spec.outFeatures) };
  }
  const call = work.calls.find((known) => known.numTokens === numTokens);
  if (call === undefined) return undefined;
  return { numParts: call.numExperts, operations: 2 * call.numChoices * 3 * spec.hiddenSize * spec.moeIntermediateSize };
}

function sizesText(spec: LayerSpec, { outFeatures }: ClassWork): string {
  if (spec.kind === 'moe') {
    return `${String(spec.numExperts)} experts of ${String(spec.hiddenSize)} x ${String(spec.moeIntermediateSize)}, top-${String(spec.topK)}`;
  }
  const isCut = outFeatures !== undefined && outFeatures < spec.outFeatures;
  return `${String(spec.inFeatures)} x ${String(outFeatures ?? spec.outFeatures)}${isCut ? ` of ${String(spec.outFeatures)}` : ''}`;
}
