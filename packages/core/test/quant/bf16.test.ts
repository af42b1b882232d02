import { expect } from 'chai';
import fc from 'fast-check';
import {
  bf16ToFloat32,
  decodeBf16,
  decodeBf16Weights,
  encodeBf16,
  encodeBf16Weights,
  float32ToBf16,
  roundToBf16,
} from '../../src/quant/bf16.js';

describe('bf16', () => {
  it('gives every pattern back', () => {
    for (let pattern = 0; pattern < 0x10000; pattern++) {
      const value = decodeBf16(pattern);
      if (!Number.isNaN(value)) expect(encodeBf16(value)).to.equal(pattern);
    }
  });

  const cases: [number, number][] = [
    [1, 1],
    [1 + 2 ** -8, 1],
    [1 + 3 * 2 ** -8, 1 + 2 ** -6],
    [1 + 2 ** -8 + 2 ** -20, 1 + 2 ** -7],
    [-1 - 3 * 2 ** -8, -1 - 2 ** -6],
    [3.4e38, Infinity],
    [-Infinity, -Infinity],
  ];
  for (const [value, rounded] of cases) {
    it(`rounds ${String(value)} to ${String(rounded)}`, () => {
      expect(roundToBf16(value)).to.equal(rounded);
    });
  }

  it('keeps NaN, whatever its payload', () => {
    const patterns = Uint32Array.of(0x7f800001, 0xffffffff, 0x7fffffff);
    for (const value of new Float32Array(patterns.buffer)) expect(roundToBf16(value)).to.be.NaN;
  });

  it('stays within half a step of every value', () => {
    fc.assert(
      fc.property(fc.float({ noNaN: true, noDefaultInfinity: true, max: 2 ** 127, min: -(2 ** 127) }), (value) => {
        expect(Math.abs(roundToBf16(value) - value)).to.be.at.most(Math.max(Math.abs(value) * 2 ** -8, 2 ** -134));
      }),
      { seed: 3 },
    );
  });

  it('converts arrays both ways', () => {
    const values = Float32Array.of(0, -1.5, 1e-40, 65280);
    expect(bf16ToFloat32(float32ToBf16(values))).to.deep.equal(values.map(roundToBf16));
    expect(decodeBf16Weights(encodeBf16Weights(values, 2, 2))).to.deep.equal(values.map(roundToBf16));
  });
});
