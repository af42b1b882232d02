import { expect } from 'chai';
import fc from 'fast-check';
import { checkFiniteWeights } from '../../src/checkpoint/finite-weights.js';
import type { TensorInfo } from '../../src/checkpoint/safetensors.js';
import { decodeBf16 } from '../../src/quant/bf16.js';
import { decodeE4m3 } from '../../src/quant/e4m3.js';
import { decodeF16 } from '../../src/quant/f16.js';

const types = [
  ['f8e4m3', 1, decodeE4m3],
  ['bf16', 2, decodeBf16],
  ['f16', 2, decodeF16],
] as const;

function info(dtype: TensorInfo['dtype']): TensorInfo {
  return { name: 'x.weight', dtype, shape: [], file: 'model.safetensors', begin: 0, end: 0 };
}

describe('checkFiniteWeights', () => {
  for (const [dtype, size, decode] of types) {
    it(`finds the first ${dtype} element that is NaN or infinite, at any place and length`, () => {
      const specials = [0xff, 0x7f, 0x80, 0x7c, 0xfc];
      const byte = fc.oneof(fc.nat(255), fc.constantFrom(...specials));
      fc.assert(
        fc.property(fc.array(byte, { maxLength: 80 }), fc.nat(7), (values, place) => {
          const aligned = Uint8Array.from(values.slice(0, values.length - (values.length % size)));
          const bytes = new Uint8Array(new ArrayBuffer(100), place - (place % size), aligned.length);
          bytes.set(aligned);
          const elements = size === 1 ? [...aligned] : [...new Uint16Array(aligned.buffer)];
          const expected = elements.findIndex((pattern) => !Number.isFinite(decode(pattern)));
          const check = (): void => {
            checkFiniteWeights(info(dtype), bytes, 100);
          };
          if (expected < 0) check();
          else expect(check).to.throw(`model.safetensors: tensor x.weight: element ${String(100 + expected)} is NaN or infinite`);
        }),
        { seed: 40, numRuns: 1000 },
      );
    });
  }

  it('lets codes pass that cannot be anything but numbers', () => {
    checkFiniteWeights(info('u8'), new Uint8Array(8).fill(255));
  });
});
