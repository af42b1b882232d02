import { expect } from 'chai';
import type { ClassFigures, KernelFigure } from '../../src/measuring/kernel-figures.js';
import { kernelLines } from '../../src/terminal/kernel-table.js';

const figure: KernelFigure = {
  ...{ backend: 'cpu', rule: 'nvfp4-wider', numTokens: 1, medianUs: 12.34, spreadUs: 1, isEstimate: false, bytes: 1, operations: 1 },
  ...{ dots: 'bf16', bandwidth: 24.96, rate: 110.4, floorUs: 8, boundBy: 'memory', ofFloor: 0.648 },
};

describe('kernelLines', () => {
  it('has a head per class and a line per kernel and size', () => {
    const classFigures: ClassFigures = {
      layer: 'model.layers.0.mlp.experts',
      layerClass: 'c',
      kind: 'moe',
      scheme: 'nvfp4.w4a4',
      sizes: '8 experts of 4 x 4, top-2',
      numLayers: 12,
      figures: [figure, { ...figure, numTokens: 64, medianUs: 2.5e6, isEstimate: true, boundBy: 'products' }],
    };
    expect(kernelLines(classFigures)).to.deep.equal([
      '12 like model.layers.0.mlp.experts: nvfp4.w4a4, 8 experts of 4 x 4, top-2',
      '  kernel             tokens        time     GB/s    Gop/s       floor  of floor',
      '  cpu/nvfp4-wider         1     12.3 µs     25.0      110     8.00 µs      65 %  memory',
      '  cpu/nvfp4-wider        64     ~2.50 s     25.0      110     8.00 µs      65 %  bf16 products',
    ]);
  });
});
