import { expect } from 'chai';
import type { Arithmetic, InputArithmetic } from '../../src/index.js';
import { inputRowBytes } from '../../src/index.js';

const arithmetic = (input: InputArithmetic): Arithmetic => ({
  input,
  weights: 'exact',
  accumulator: 'f32',
  intermediate: 'bf16',
  output: 'bf16',
});

describe('inputRowBytes', () => {
  it('counts codes and scales', () => {
    const asScheme = arithmetic({ type: 'as-scheme' });
    expect(inputRowBytes(asScheme, 'nvfp4.w4a4', 256)).to.equal(128 + 16);
    expect(inputRowBytes(asScheme, 'fp8.channel', 256)).to.equal(256 + 4);
    expect(inputRowBytes(asScheme, 'fp8.block128', 256)).to.equal(256 + 8);
    expect(inputRowBytes(asScheme, 'bf16', 256)).to.equal(512);
    expect(inputRowBytes(arithmetic({ type: 'float', dtype: 'f32' }), 'bf16', 256)).to.equal(1024);
    expect(inputRowBytes(arithmetic({ type: 'float', dtype: 'bf16' }), 'nvfp4.w4a4', 256)).to.equal(512);
    expect(inputRowBytes(arithmetic({ type: 'own', quantization: { type: 'int8', granularity: 'group32' } }), 'bf16', 256)).to.equal(
      256 + 32,
    );
  });
});
