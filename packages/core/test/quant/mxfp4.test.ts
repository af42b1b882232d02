import { expect } from 'chai';
import { decodeMxfp4Weights, encodeMxfp4Weights } from '../../src/quant/mxfp4.js';
import { relativeL2 } from '@moe-server/test-kit';
import { gaussian } from './seeded.js';

describe('MXFP4 weights', () => {
  it('encode a block with amax 2.5 by the exponent −1', () => {
    const values = new Float32Array(32);
    values.set([0.3, -0.9, 2.5]);
    const weights = encodeMxfp4Weights(values, 1, 32);
    expect([...weights.blockScales]).to.deep.equal([126]);
    expect([...weights.codes.subarray(0, 2)]).to.deep.equal([1 | (12 << 4), 6]);
    expect([...decodeMxfp4Weights(weights).subarray(0, 3)]).to.deep.equal([0.25, -1, 2]);
  });

  it('are encoded again to the same values', () => {
    const values = gaussian(16 * 64, 7);
    const once = decodeMxfp4Weights(encodeMxfp4Weights(values, 16, 64));
    expect(relativeL2(once, values)).to.be.within(0.09, 0.16);
    const twice = decodeMxfp4Weights(encodeMxfp4Weights(once, 16, 64));
    expect(relativeL2(twice, once)).to.equal(0);
  });

  it('hold a block of zeros', () => {
    expect(decodeMxfp4Weights(encodeMxfp4Weights(new Float32Array(32), 1, 32))).to.deep.equal(new Float32Array(32));
  });
});
