import { expect } from 'chai';
import { roundOnce } from '../../src/reference/reference-input.js';

describe('roundOnce', () => {
  it('rounds a float64 beside the middle of two numbers to its own side, whatever the nearest float32 is', () => {
    // 3.2421875 lies between the bfloat16 3.234375 and 3.25, and ties go to the even one, 3.25.
    const middle = 3.2421875;
    const values = Float64Array.of(middle, middle - 2.5e-8, middle + 2.5e-8, -middle + 2.5e-8, -middle);
    expect([...roundOnce(values, 'bf16')]).to.deep.equal([3.25, 3.234375, 3.25, -3.234375, -3.25]);
    // 1 + 2^-11 lies between the halves 1 and 1 + 2^-10.
    const half = 1 + 2 ** -11;
    expect([...roundOnce(Float64Array.of(half, half + 2 ** -40), 'f16')]).to.deep.equal([1, 1 + 2 ** -10]);
  });

  it('keeps what the type holds, zeros with their sign, and what is not finite', () => {
    for (const dtype of ['f32', 'bf16', 'f16'] as const) {
      const values = [0, -0, 1, -2.5, Infinity, -Infinity, NaN];
      expect([...roundOnce(Float64Array.from(values), dtype)], dtype).to.deep.equal(values);
    }
    expect([...roundOnce(Float64Array.of(0.1, 1e300, 1e-300), 'f32')]).to.deep.equal([Math.fround(0.1), Infinity, 0]);
  });
});
