import { relativeL2 } from '@moe-server/test-kit';
import { expect } from 'chai';
import {
  decodeFp8BlockWeights,
  decodeFp8ChannelWeights,
  decodeFp8TensorWeights,
  dequantizeFp8Input,
  encodeFp8BlockWeights,
  encodeFp8ChannelWeights,
  encodeFp8TensorWeights,
  quantizeFp8Input,
} from '../../src/quant/fp8.js';
import { gaussian } from './seeded.js';

describe('FP8 weights', () => {
  const values = gaussian(200 * 300, 8, 0.02);

  it('have one scale, amax/448', () => {
    const weights = encodeFp8TensorWeights(values, 200, 300, { scheme: 'fp8.tensor.static', inputScale: 0.5 });
    const amax = values.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
    expect(weights.scale).to.equal(Math.fround(amax / 448));
    expect(weights.inputScale).to.equal(0.5);
    expect(relativeL2(decodeFp8TensorWeights(weights), values)).to.be.below(0.03);
  });

  it('have a scale per row', () => {
    const weights = encodeFp8ChannelWeights(values, 200, 300);
    expect(weights.rowScales).to.have.length(200);
    expect(relativeL2(decodeFp8ChannelWeights(weights), values)).to.be.below(0.03);
  });

  it('have a scale per 128x128 block, the last ones smaller', () => {
    const weights = encodeFp8BlockWeights(values, 200, 300);
    expect(weights.blockScales).to.have.length(2 * 3);
    expect(relativeL2(decodeFp8BlockWeights(weights), values)).to.be.below(0.03);
    const decoded = decodeFp8BlockWeights({
      ...weights,
      blockScales: Float32Array.of(1, 2, 3, 4, 5, 6),
      codes: new Uint8Array(60000).fill(0x38),
    });
    expect([decoded[0], decoded[127 * 300 + 127], decoded[128], decoded[299]]).to.deep.equal([1, 1, 2, 3]);
    expect([decoded[128 * 300], decoded[199 * 300 + 299]]).to.deep.equal([4, 6]);
  });

  it('decode again to the values they were encoded from', () => {
    const once = decodeFp8BlockWeights(encodeFp8BlockWeights(values, 200, 300));
    expect(relativeL2(decodeFp8BlockWeights(encodeFp8BlockWeights(once, 200, 300)), once)).to.be.below(1e-6);
  });

  it('hold zeros with the scale 1', () => {
    expect(encodeFp8TensorWeights(new Float32Array(4), 2, 2, { scheme: 'fp8.tensor.dynamic' }).scale).to.equal(1);
  });
});

describe('FP8 inputs', () => {
  it('quantize with a calibrated scale, saturating', () => {
    const scale = Math.fround(8 / 448);
    const input = quantizeFp8Input(Float32Array.of(0.5, -1.5, 5, 9.3, 0.0001), 5, 'tensor', scale);
    const decoded = dequantizeFp8Input(input);
    const expected = [0.5, -1.428571, 5.142858, 8, 0.00010463];
    expected.forEach((value, i) => expect(decoded[i]).to.be.closeTo(value, 1e-6 * Math.max(1, Math.abs(value))));
  });

  it('find a scale per token, never below 1/(448·512)', () => {
    const input = quantizeFp8Input(Float32Array.of(1, -2, 0, 0, 448, 1), 2, 'token');
    expect([...input.scales]).to.deep.equal([Math.fround(2 / 448), Math.fround(1 / (448 * 512)), 1]);
    expect([...input.codes.subarray(2, 4)]).to.deep.equal([0, 0]);
  });

  it('find a scale per 128 columns, from at least 1e-10', () => {
    const x = new Float32Array(2 * 200);
    x[0] = 3;
    x[199] = -5;
    const input = quantizeFp8Input(x, 200, 'group128');
    const floor = Math.fround(Math.fround(1e-10) / 448);
    expect([...input.scales]).to.deep.equal([Math.fround(3 / 448), Math.fround(5 / 448), floor, floor]);
    expect(dequantizeFp8Input(input)[199]).to.be.closeTo(-5, 1e-6);
  });

  it('find one scale for the tensor, and leave zeros alone', () => {
    expect([...quantizeFp8Input(Float32Array.of(1, -7), 1, 'tensor').scales]).to.deep.equal([Math.fround(7 / 448)]);
    expect([...dequantizeFp8Input(quantizeFp8Input(new Float32Array(4), 2, 'tensor'))]).to.deep.equal([0, 0, 0, 0]);
  });

  it('carry about 2.6 % of noise on Gaussian rows', () => {
    const x = gaussian(32 * 256, 9);
    for (const granularity of ['tensor', 'token', 'group128'] as const) {
      expect(relativeL2(dequantizeFp8Input(quantizeFp8Input(x, 256, granularity)), x), granularity).to.be.within(0.02, 0.03);
    }
  });
});
