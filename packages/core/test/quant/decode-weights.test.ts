import { expect } from 'chai';
import { decodeWeights } from '../../src/quant/decode-weights.js';
import type { SchemeKey, SchemeRegistry } from '../../src/quant/quant-scheme.js';
import { SCHEME } from '../../src/quant/quant-scheme.js';

describe('decodeWeights', () => {
  it('refuses schemes of plugins by name', () => {
    const weights = { [SCHEME]: 'mine.w3a16', rows: 1, columns: 1 } as unknown as SchemeRegistry[SchemeKey];
    expect(() => decodeWeights(weights))
      .to.throw('mine.w3a16')
      .with.property('code', 'MOE_UNSUPPORTED_QUANTIZATION');
  });
});
