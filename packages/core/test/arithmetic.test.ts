import { expect } from 'chai';
import { dotTypeOf } from '../src/arithmetic.js';
import type { Arithmetic, InputArithmetic } from '../src/arithmetic.js';
import { schemeInfo } from '../src/quant/quant-scheme.js';

const of = (scheme: string, input: InputArithmetic): string => {
  const arithmetic: Arithmetic = { input, weights: 'exact', accumulator: 'f32', intermediate: 'f32', output: 'f32' };
  return dotTypeOf(schemeInfo(scheme)!, arithmetic);
};

describe('dotTypeOf', () => {
  it('is what floats are rounded to, where a processor has dot products for it', () => {
    expect(of('nvfp4.w4a4', { type: 'float', dtype: 'bf16' })).to.equal('bf16');
    expect(of('nvfp4.w4a4', { type: 'float', dtype: 'f32' })).to.equal('f32');
    expect(of('f16', { type: 'float', dtype: 'f16' })).to.equal('f32');
  });

  it('follows the scheme where inputs do', () => {
    expect(of('nvfp4.w4a4', { type: 'as-scheme' })).to.equal('int8');
    expect(of('fp8.tensor.static', { type: 'as-scheme' })).to.equal('bf16');
    expect(of('bf16', { type: 'as-scheme' })).to.equal('f32');
  });

  it("follows a kernel's own quantization", () => {
    expect(of('bf16', { type: 'own', quantization: { type: 'int8', granularity: 'token' } })).to.equal('int8');
  });
});
