import { relativeL2 } from '@moe-server/test-kit';
import { expect } from 'chai';
import fc from 'fast-check';
import { decodeE4m3 } from '../../src/quant/e4m3.js';
import { decodeNvfp4Weights, dequantizeNvfp4Input, encodeNvfp4Weights, quantizeNvfp4Input } from '../../src/quant/nvfp4.js';
import { gaussian } from './seeded.js';

/** The worked values of docs/numerics.md#worked-values. */
const weightBlock = [0.1, -0.25, 0.4, 0.05, -0.6, 0.33, 0, 0.91, -0.12, 0.2, -0.48, 0.75, 0.015, -0.9, 0.56, -0.03];
const weightBytes = [0xb1, 0x15, 0x4e, 0x70, 0x3a, 0x7d, 0xf0, 0x86];
const inputBlock = [0.5, -1.5, 3, 0.02, 2.2, -0.7, 0.9, 1.1, -4.4, 0.3, 0.6, -0.1, 5, -2.6, 1.7, 0];

function unpack(codes: Uint8Array): number[] {
  return [...codes].flatMap((byte) => [byte & 15, byte >> 4]);
}

function expectClose(actual: Float32Array, expected: readonly number[], tolerance: number): void {
  expected.forEach((value, i) => expect(actual[i], `element ${String(i)}`).to.be.closeTo(value, tolerance));
}

describe('NVFP4 weights', () => {
  it('encode a block of a tensor with amax 1.344 as the exporter does', () => {
    const other = [1.344, ...new Array<number>(15).fill(0)];
    const weights = encodeNvfp4Weights(Float32Array.from([...weightBlock, ...other]), 1, 32, { scheme: 'nvfp4.w4a4', inputScale: 1 });
    expect(new Uint32Array(Float32Array.of(weights.globalScale).buffer)[0]).to.equal(0x3a03126e);
    expect(weights.blockScales[0]).to.equal(0x79);
    expect(decodeE4m3(0x79)).to.equal(288);
    expect([...weights.codes.subarray(0, 8)]).to.deep.equal(weightBytes);
    expectClose(
      decodeNvfp4Weights(weights),
      [0.072, -0.216, 0.432, 0.072, -0.576, 0.288, 0, 0.864, -0.144, 0.216, -0.432, 0.864, 0, -0.864, 0.576, -0],
      1e-6,
    );
  });

  it('encode the same bytes with a divisor, as compressed-tensors does', () => {
    const weights = encodeNvfp4Weights(Float32Array.from(weightBlock), 1, 16, {
      scheme: 'nvfp4.w4a16',
      globalScaleIs: 'divisor',
      globalScale: 2000,
    });
    expect(weights.blockScales[0]).to.equal(0x79);
    expect([...weights.codes]).to.deep.equal(weightBytes);
    expect(weights.inputScale).to.equal(undefined);
  });

  it('give a block of zeros the scale 1', () => {
    const weights = encodeNvfp4Weights(new Float32Array(32), 2, 16, { scheme: 'nvfp4.w4a16' });
    expect([...weights.blockScales]).to.deep.equal([0x38, 0x38]);
    expect(decodeNvfp4Weights(weights)).to.deep.equal(new Float32Array(32));
  });

  it('decode with one rounding per step, so that factor and divisor differ in the last bit', () => {
    const codes = Uint8Array.of(0x25, 0, 0, 0, 0, 0, 0, 0);
    const base = { ...encodeNvfp4Weights(new Float32Array(16), 1, 16, { scheme: 'nvfp4.w4a16' }), codes, blockScales: Uint8Array.of(0x79) };
    const factor = decodeNvfp4Weights({ ...base, globalScale: Math.fround(0.1), globalScaleIs: 'factor' });
    expect(factor[0]).to.equal(Math.fround(3 * Math.fround(288 * Math.fround(0.1))));
    const divisor = decodeNvfp4Weights({ ...base, globalScale: 10, globalScaleIs: 'divisor' });
    expect(divisor[0]).to.equal(Math.fround(3 * Math.fround(288 / 10)));
  });

  it('lose about a tenth of Gaussian values', () => {
    const values = gaussian(64 * 256, 4);
    const decoded = decodeNvfp4Weights(encodeNvfp4Weights(values, 64, 256, { scheme: 'nvfp4.w4a16' }));
    expect(relativeL2(decoded, values)).to.be.within(0.08, 0.11);
  });

  it('are off by at most one block scale per value, whatever the values', () => {
    fc.assert(
      fc.property(
        fc.float32Array({ minLength: 32, maxLength: 32, noNaN: true, min: -1e6, max: 1e6 }),
        fc.constantFrom('factor' as const, 'divisor' as const),
        (values, globalScaleIs) => {
          const amax = values.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
          fc.pre(amax === 0 || amax > 1e-20);
          const weights = encodeNvfp4Weights(values, 2, 16, { scheme: 'nvfp4.w4a16', globalScaleIs });
          const decoded = decodeNvfp4Weights(weights);
          for (const [i, value] of values.entries()) {
            const blockScale = decodeE4m3(weights.blockScales[i >> 4]!);
            const step = globalScaleIs === 'factor' ? blockScale * weights.globalScale : blockScale / weights.globalScale;
            // Half the distance between 4 and 6 is one step of the scale.
            expect(Math.abs(decoded[i]! - value)).to.be.at.most(step * 1.0001);
          }
        },
      ),
      { seed: 5, numRuns: 200 },
    );
  });
});

describe('NVFP4 inputs', () => {
  it('quantize a block below the calibrated maximum', () => {
    const scale = Math.fround(8 / 2688);
    const input = quantizeNvfp4Input(Float32Array.from(inputBlock), 16, scale);
    expect(decodeE4m3(input.blockScales[0]!)).to.equal(288);
    expect(unpack(input.codes)).to.deep.equal([1, 12, 6, 0, 5, 10, 2, 3, 15, 1, 1, 8, 7, 13, 4, 0]);
    expectClose(
      dequantizeNvfp4Input(input),
      [
        0.428571, -1.714286, 3.428571, 0, 2.571429, -0.857143, 0.857143, 1.285714, -5.142857, 0.428571, 0.428571, -0, 5.142857, -2.571429,
        1.714286, 0,
      ],
      1e-5,
    );
  });

  it('saturate above the calibrated maximum', () => {
    const input = quantizeNvfp4Input(Float32Array.from(inputBlock), 16, Math.fround(4 / 2688));
    expect(decodeE4m3(input.blockScales[0]!)).to.equal(448);
    expect(unpack(input.codes)).to.deep.equal([2, 12, 6, 0, 5, 10, 3, 3, 15, 1, 2, 8, 7, 14, 5, 0]);
    expect(dequantizeNvfp4Input(input)[12]).to.be.closeTo(4, 1e-6);
  });

  it('become zero where the block scale does', () => {
    const input = quantizeNvfp4Input(
      Float32Array.from({ length: 16 }, (_, i) => (i - 8) * 1e-9),
      16,
      1,
    );
    expect([...input.blockScales]).to.deep.equal([0]);
    expect([...input.codes]).to.deep.equal(new Array(8).fill(0));
    expect(dequantizeNvfp4Input(input)).to.deep.equal(new Float32Array(16));
  });

  it('carry about 9.5 % of noise on Gaussian rows', () => {
    const x = gaussian(32 * 256, 6);
    const decoded = dequantizeNvfp4Input(quantizeNvfp4Input(x, 256, Math.fround(4.5 / 2688)));
    expect(relativeL2(decoded, x)).to.be.within(0.085, 0.105);
  });
});
