import type { MeasuredTime } from '@moe-server/core';
import { expertGroup, linearSpec } from '@moe-server/core/conformance';
import type { CpuRates } from '@moe-server/engine';
import { expect } from 'chai';
import { classFiguresOf, meanRates } from '../../src/measuring/kernel-figures.js';
import type { ClassToMeasure, ClassWork } from '../../src/measuring/protocol.js';

/** 10 bytes a nanosecond; 100 and 50 operations. */
const rates: CpuRates = { numThreads: 2, bandwidth: 10, dots: { int8: 100, bf16: undefined, f32: 50 } };
const rule = { backend: 'cpu', rule: 'r', min: 1, max: 64, dots: 'int8' } as const;
const time = (numTokens: number, medianUs: number, name = 'r'): MeasuredTime => ({
  backend: 'cpu',
  rule: name,
  numTokens,
  medianUs,
  spreadUs: 1,
});
const measured = (...times: MeasuredTime[]) => ({ layerClass: 'c', measuredAt: '2026-01-02T03:04:05.000Z', times });

describe('classFiguresOf', () => {
  const group = expertGroup({ w13: 'nvfp4.w4a4', hiddenSize: 100, moeIntermediateSize: 50, numExperts: 16, topK: 4 });
  const experts: ClassToMeasure = { layerClass: 'c', spec: group, scheme: 'nvfp4.w4a4', numLayers: 3, rules: [rule] };
  const work: ClassWork = {
    calls: [
      { numTokens: 1, numExperts: 4, numChoices: 4 },
      { numTokens: 64, numExperts: 16, numChoices: 200 },
    ],
    weights: [{ backend: 'cpu', rule: 'r', bytes: 10_000 }],
    outFeatures: undefined,
  };

  it('holds a small call against memory: the experts that its tokens chose', () => {
    const [figure] = classFiguresOf(experts, measured(time(1, 8)), work, rates).figures;
    expect(figure).to.deep.include({ bytes: 40_000, boundBy: 'memory', floorUs: 4, ofFloor: 0.5, bandwidth: 5, isEstimate: false });
  });

  it('holds a large one against products: those of the choices that were there', () => {
    const [figure] = classFiguresOf(experts, measured(time(64, 120)), work, rates).figures;
    const operations = 2 * 200 * 3 * 100 * 50;
    expect(figure).to.deep.include({ operations, boundBy: 'products', floorUs: operations / 100_000, rate: operations / 120_000 });
  });

  it('counts a linear whole, and as much of it as was there', () => {
    const spec = { ...linearSpec('bf16', 10, [1000]), layerIndex: undefined };
    const linear: ClassToMeasure = { layerClass: 'c', spec, scheme: 'bf16', numLayers: 1, rules: [{ ...rule, dots: 'bf16' }] };
    const ofLinear: ClassWork = { calls: [], weights: [{ backend: 'cpu', rule: 'r', bytes: 1000 }], outFeatures: 50 };
    const { figures, sizes } = classFiguresOf(linear, measured(time(8, 1)), ofLinear, rates);
    expect(sizes).to.equal('10 x 50 of 1000');
    // bf16 has no instruction here, so float32's rate counts.
    expect(figures[0]).to.deep.include({ bytes: 1000, operations: 2 * 8 * 10 * 50, floorUs: 8000 / 50_000, boundBy: 'products' });
  });

  it('orders by size, then the fastest first, and leaves out what is not known', () => {
    const two = { ...experts, rules: [rule, { ...rule, rule: 'fast' }] };
    const bytes = { ...work, weights: [...work.weights, { backend: 'cpu', rule: 'fast', bytes: 10_000 }] };
    const times = measured(time(64, 5), time(1, 9), time(1, 3, 'fast'), time(1, 1, 'unknown'), time(7, 1));
    const { figures, numLayers, sizes } = classFiguresOf(two, times, bytes, rates);
    expect(figures.map((figure) => [figure.numTokens, figure.rule])).to.deep.equal([
      [1, 'fast'],
      [1, 'r'],
      [64, 'r'],
    ]);
    expect([numLayers, sizes]).to.deep.equal([3, '16 experts of 100 x 50, top-4']);
  });
});

describe('meanRates', () => {
  it('takes the middle of what there is', () => {
    const after = { ...rates, bandwidth: 20, dots: { int8: 300, bf16: undefined, f32: 50 } };
    expect(meanRates(rates, after)).to.deep.equal({ numThreads: 2, bandwidth: 15, dots: { int8: 200, bf16: undefined, f32: 50 } });
  });
});
