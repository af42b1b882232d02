import { expect } from 'chai';
import { decodeE8m0, encodeE8m0AtLeast } from '../../src/quant/e8m0.js';

describe('e8m0', () => {
  it('decodes powers of two, 255 being NaN', () => {
    expect(decodeE8m0(127)).to.equal(1);
    expect(decodeE8m0(0)).to.equal(2 ** -127);
    expect(decodeE8m0(254)).to.equal(2 ** 127);
    expect(decodeE8m0(255)).to.be.NaN;
  });

  it('finds the smallest power of two that is not below a value', () => {
    for (let byte = 1; byte < 254; byte++) {
      const value = decodeE8m0(byte);
      expect(encodeE8m0AtLeast(value), String(value)).to.equal(byte);
      expect(encodeE8m0AtLeast(value * 1.0001)).to.equal(byte + 1);
      expect(encodeE8m0AtLeast(value * 0.9999)).to.equal(byte);
    }
  });

  it('holds zero and what is out of range within the format', () => {
    expect(encodeE8m0AtLeast(0)).to.equal(0);
    expect(encodeE8m0AtLeast(1e-300)).to.equal(0);
    expect(encodeE8m0AtLeast(1e300)).to.equal(254);
  });
});
