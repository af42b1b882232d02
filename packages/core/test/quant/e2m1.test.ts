import { expect } from 'chai';
import fc from 'fast-check';
import { decodeE2m1, e2m1Values, encodeE2m1 } from '../../src/quant/e2m1.js';

describe('e2m1', () => {
  it('has the sixteen values of the format, code 8 being −0', () => {
    expect([...e2m1Values.subarray(0, 8)]).to.deep.equal([0, 0.5, 1, 1.5, 2, 3, 4, 6]);
    expect(Object.is(decodeE2m1(8), -0)).to.equal(true);
    for (let code = 1; code < 8; code++) expect(decodeE2m1(code | 8)).to.equal(-decodeE2m1(code));
  });

  it('gives every value its own code back', () => {
    for (let code = 0; code < 16; code++) expect(encodeE2m1(decodeE2m1(code))).to.equal(code);
  });

  const ties: [number, number][] = [
    [0.25, 0],
    [0.75, 1],
    [1.25, 1],
    [1.75, 2],
    [2.5, 2],
    [3.5, 4],
    [5, 4],
  ];
  for (const [value, rounded] of ties) {
    it(`rounds the tie ${String(value)} to ${String(rounded)}, either sign`, () => {
      expect(decodeE2m1(encodeE2m1(value))).to.equal(rounded);
      expect(decodeE2m1(encodeE2m1(-value))).to.equal(-rounded);
    });
  }

  it('saturates above 6, at infinity too', () => {
    for (const value of [6.1, 1e30, Infinity]) {
      expect(decodeE2m1(encodeE2m1(value))).to.equal(6);
      expect(decodeE2m1(encodeE2m1(-value))).to.equal(-6);
    }
  });

  it('keeps the sign of what rounds to zero', () => {
    expect(encodeE2m1(-0.1)).to.equal(8);
    expect(encodeE2m1(-0)).to.equal(8);
    expect(encodeE2m1(0.1)).to.equal(0);
  });

  it('never finds a value that another code is nearer to', () => {
    fc.assert(
      fc.property(fc.float({ min: -6, max: 6, noNaN: true }), (value) => {
        const distance = Math.abs(decodeE2m1(encodeE2m1(value)) - value);
        for (const candidate of e2m1Values) expect(distance).to.be.at.most(Math.abs(candidate - value));
      }),
      { seed: 1 },
    );
  });
});
