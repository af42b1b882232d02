import { expect } from 'chai';
import type { Arithmetic } from '../../src/arithmetic.js';
import { referenceLinear, toleranceFor, randomMatrix, Random, randomRows, measureError } from '../../src/conformance/index.js';
import type { RoundedCounts } from '../../src/conformance/index.js';

const exact: Arithmetic = {
  input: { type: 'float', dtype: 'f32' },
  weights: 'exact',
  accumulator: 'f32',
  intermediate: 'f32',
  output: 'f32',
};
const counts: RoundedCounts = { inputs: 50_000, intermediates: 50_000, outputs: 50_000, columns: 1024 };

describe('toleranceFor', () => {
  it('allows 1e-5 in relative L2 for float32 sums of exact products, as the fixtures do', () => {
    expect(toleranceFor({ first: 'bf16', second: 'bf16' }, exact, counts).nmse).to.be.closeTo(1e-10, 1e-12);
  });

  it('allows more where more is rounded', () => {
    const nmse = (first: string, arithmetic: Partial<Arithmetic>): number =>
      toleranceFor({ first, second: first }, { ...exact, ...arithmetic }, counts).nmse;
    const asScheme = { input: { type: 'as-scheme' } } as const;
    expect(nmse('bf16', { intermediate: 'bf16' })).to.be.greaterThan(nmse('bf16', {}));
    expect(nmse('fp8.channel', asScheme)).to.be.greaterThan(nmse('bf16', { intermediate: 'bf16' }));
    expect(nmse('nvfp4.w4a4', asScheme)).to.be.greaterThan(nmse('fp8.channel', asScheme));
    expect(nmse('bf16', { accumulator: 'f16' })).to.be.greaterThan(nmse('bf16', {}));
    expect(nmse('bf16', { weights: 'requantized' })).to.be.greaterThan(1e-3);
  });

  for (const scheme of ['nvfp4.w4a4', 'fp8.tensor.static', 'fp8.channel', 'fp8.block128'] as const) {
    it(`stays below what leaving ${scheme} inputs unquantized would cost`, () => {
      const random = new Random(4);
      const matrix = randomMatrix(scheme, 64, 512, random, { inputAmax: 8 });
      const call = {
        numTokens: 16,
        input: randomRows(16, 512, random),
        linear: { inFeatures: 512, outFeatures: 64 },
        modules: [{ matrix, bias: undefined }],
      };
      const quantized: Arithmetic = { ...exact, input: { type: 'as-scheme' } };
      const { nmse } = measureError(referenceLinear({ ...call, arithmetic: exact }), referenceLinear({ ...call, arithmetic: quantized }));
      const allowed = toleranceFor({ first: scheme }, quantized, { inputs: 16 * 512, intermediates: 0, outputs: 16 * 64, columns: 512 });
      expect(nmse).to.be.greaterThan(5 * allowed.nmse);
    });
  }
});

describe('measureError', () => {
  it('gives the normalised mean square and the largest error over the RMS', () => {
    const { nmse, maxError, worstIndex } = measureError([1, 2, 2], [1, 2, -2]);
    expect(nmse).to.be.closeTo(16 / 9, 1e-12);
    expect(maxError).to.be.closeTo(4 / Math.sqrt(3), 1e-12);
    expect(worstIndex).to.equal(2);
  });

  it('takes NaN for an infinite error', () => {
    expect(measureError([NaN], [1]).nmse).to.equal(Infinity);
  });
});
