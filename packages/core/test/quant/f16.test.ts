import { expect } from 'chai';
import { SCHEME } from '../../src/quant/quant-scheme.js';
import { decodeF16, decodeF16Weights, encodeF16, roundToF16 } from '../../src/quant/f16.js';

describe('f16', () => {
  const cases: [number, number][] = [
    [0x0001, 2 ** -24],
    [0x03ff, 1023 * 2 ** -24],
    [0x0400, 2 ** -14],
    [0x3c00, 1],
    [0xc000, -2],
    [0x7bff, 65504],
    [0x7c00, Infinity],
  ];
  for (const [pattern, value] of cases) {
    it(`decodes 0x${pattern.toString(16)} as ${String(value)}`, () => {
      expect(decodeF16(pattern)).to.equal(value);
    });
  }

  it('gives every pattern back', () => {
    for (let pattern = 0; pattern < 0x10000; pattern++) {
      const value = decodeF16(pattern);
      if (Number.isNaN(value)) expect(decodeF16(encodeF16(value))).to.be.NaN;
      else expect(encodeF16(value)).to.equal(pattern);
    }
  });

  it('rounds ties to even and overflows to infinity', () => {
    expect(roundToF16(1 + 2 ** -11)).to.equal(1);
    expect(roundToF16(1 + 3 * 2 ** -11)).to.equal(1 + 2 ** -9);
    expect(roundToF16(2 ** -25)).to.equal(0);
    expect(roundToF16(3 * 2 ** -25)).to.equal(2 ** -23);
    expect(roundToF16(65519)).to.equal(65504);
    expect(roundToF16(-65520)).to.equal(-Infinity);
  });

  it('decodes weights', () => {
    const weights = { [SCHEME]: 'f16' as const, rows: 1, columns: 2, values: Uint16Array.of(0x3c00, 0x8001) };
    expect(decodeF16Weights(weights)).to.deep.equal(Float32Array.of(1, -(2 ** -24)));
  });
});
