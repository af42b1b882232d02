import { expect } from 'chai';
import fc from 'fast-check';
import { decodeE4m3, e4m3Values, encodeE4m3, findInvalidE4m3Scale } from '../../src/quant/e4m3.js';

describe('e4m3', () => {
  it('has 448 as its largest, 2^-9 as its smallest value, and NaN at 0x7F and 0xFF', () => {
    expect(decodeE4m3(0x7e)).to.equal(448);
    expect(decodeE4m3(0x01)).to.equal(2 ** -9);
    expect(decodeE4m3(0x08)).to.equal(2 ** -6);
    expect(decodeE4m3(0x7f)).to.be.NaN;
    expect(decodeE4m3(0xff)).to.be.NaN;
  });

  it('gives every value its own byte back', () => {
    for (let byte = 0; byte < 256; byte++) if ((byte & 0x7f) !== 0x7f) expect(encodeE4m3(decodeE4m3(byte))).to.equal(byte);
  });

  const cases: [number, number][] = [
    [17, 16],
    [19, 20],
    [27, 28],
    [464, 448],
    [1e9, 448],
    [Infinity, 448],
    [2 ** -10, 0],
    [3 * 2 ** -10, 2 ** -8],
    [2 ** -6 - 2 ** -11, 2 ** -6],
  ];
  for (const [value, rounded] of cases) {
    it(`rounds ${String(value)} to ${String(rounded)}, either sign`, () => {
      expect(decodeE4m3(encodeE4m3(value))).to.equal(rounded);
      expect(Math.abs(decodeE4m3(encodeE4m3(-value)))).to.equal(rounded);
    });
  }

  it('keeps NaN', () => {
    expect(decodeE4m3(encodeE4m3(NaN))).to.be.NaN;
  });

  it('rounds to the nearest value, to the even mantissa between two', () => {
    fc.assert(
      fc.property(fc.float({ min: -448, max: 448, noNaN: true }), (value) => {
        const byte = encodeE4m3(value);
        const distance = Math.abs(decodeE4m3(byte) - value);
        for (const [other, candidate] of e4m3Values.entries()) {
          if (Number.isNaN(candidate) || (other & 0x80) !== (byte & 0x80)) continue;
          expect(distance).to.be.at.most(Math.abs(candidate - value));
          if (other !== byte && Math.abs(candidate - value) === distance) expect(byte & 1).to.equal(0);
        }
      }),
      { seed: 2 },
    );
  });

  it('finds scales that are NaN or negative', () => {
    expect(findInvalidE4m3Scale(Uint8Array.of(0, 0x7e, 0x80, 1))).to.equal(-1);
    expect(findInvalidE4m3Scale(Uint8Array.of(1, 0x7f))).to.equal(1);
    expect(findInvalidE4m3Scale(Uint8Array.of(0x81, 1))).to.equal(0);
    expect(findInvalidE4m3Scale(Uint8Array.of(1, 2, 0xff))).to.equal(2);
    const byte = fc.oneof({ weight: 30, arbitrary: fc.nat(0x7e) }, fc.constantFrom(0x7f, 0x80, 0x81, 0xff));
    fc.assert(
      fc.property(fc.array(byte, { maxLength: 70 }), fc.nat(7), (values, place) => {
        const bytes = new Uint8Array(new ArrayBuffer(80), place, values.length);
        bytes.set(values);
        expect(findInvalidE4m3Scale(bytes)).to.equal(values.findIndex((value) => value === 0x7f || value > 0x80));
      }),
      { seed: 3, numRuns: 1000 },
    );
  });
});
