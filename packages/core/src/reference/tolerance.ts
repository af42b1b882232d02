import type { Arithmetic } from '../arithmetic.js';
import type { InputQuantization } from '../quant/quant-scheme.js';
import { inputQuantizationOf } from './reference-input.js';

/** How far a result may lie from the reference. */
export interface Tolerance {
  /** sum of (result − reference)² over the call / sum of reference². */
  readonly nmse: number;
  /** Largest |result − reference| over the root mean square of the reference. */
  readonly maxError: number;
}

/** What a call rounds: the more numbers, the less one that falls on the other side matters. */
export interface RoundedCounts {
  /** Input values that meet the first weights. */
  readonly inputs: number;
  /** Values of activation(gate, up); 0 for a linear. */
  readonly intermediates: number;
  readonly outputs: number;
  /** Longest sum. */
  readonly columns: number;
}

/**
 * The bound for one scheme and arithmetic. Contributions, each a normalised mean square (docs/tolerances.md derives them):
 *
 * - Sums in float32 of exact products: 1e-10, that is 1e-5 in relative L2. A random walk over K = 8192 terms ends at sqrt(K) * 2^-24
 *   = 5e-6. Sums in float16: K * 2^-22.
 * - Values that the reference and the kernel both round, from numbers that differ by float32 noise: some land on the other side.
 *   {@link flips} bounds how much that moves.
 * - Requantized weights: 1e-3, a little above what e4m3 rounding of normal weights costs (0.026²).
 *
 * The maximum allows {@link largestFactor} standard deviations of such an error.
 *
 * @param schemes - of the weights that read the call's input, and of those that read the intermediate; one for a linear.
 */
export function toleranceFor(
  schemes: { readonly first: string; readonly second?: string },
  arithmetic: Arithmetic,
  counts: RoundedCounts,
): Tolerance {
  const first = inputQuantizationOf(arithmetic.input, schemes.first);
  let nmse = arithmetic.accumulator === 'f16' ? counts.columns * 2 ** -22 : 1e-10;
  nmse += flips(quantizationNoise(first), counts.inputs);
  if (schemes.second !== undefined) {
    const second = inputQuantizationOf(arithmetic.input, schemes.second);
    nmse += flips(quantizationNoise(second), counts.intermediates);
    nmse += flips(roundingNoise(narrowest(arithmetic.intermediate, arithmetic.input)), counts.intermediates);
  }
  nmse += flips(roundingNoise(arithmetic.output), counts.outputs);
  if (arithmetic.weights === 'requantized') nmse += 1e-3;
  return { nmse, maxError: largestFactor * Math.sqrt(nmse) };
}

/**
 * How far the largest error of a call may lie above the square root of its NMSE bound. One flip decides it: nothing averages a single number that fell
 * on the other side, while the NMSE bound of a call with many tokens spreads a share of 0.2 % over all rows.
 *
 * Traced (docs/tolerances.md): with 130 tokens and FP8 weights the largest error was 16.5 deviations, all of it from one intermediate, 3.3 times the
 * root mean square of all, that lay 7e-9 of itself beside the middle of two bfloat16 and met a weight of 4.2 deviations. Over eight seeds
 * (13,248 calls) the largest three were 19.1, 16.5 and 12.0, each from one such number. The largest intermediates among 40,000 are another
 * two times larger: hence 32.
 */
const largestFactor = 32;

/**
 * A number that falls to the other side of a rounding boundary is off by a whole step, where rounding is off by step²/12 in the mean
 * square: 12 times the noise, for the share of numbers that do. That share is at most 0.2 % where kernels multiply by reciprocals
 * (measured; test/fixtures/README.md), far less where they divide; but four numbers may always fall so, which counts where the
 * call has few. Four, because magnitudes differ and the largest weigh most.
 */
function flips(noise: number, count: number): number {
  return noise === 0 ? 0 : 12 * noise * Math.max(0.002, 4 / count);
}

/** Mean square error of quantizing a normal row, over its mean square: 9.5 %, 2.6 % and 0.7 % in relative L2. */
function quantizationNoise(quantization: InputQuantization): number {
  switch (quantization.type) {
    case 'none':
      return 0;
    case 'nvfp4':
      return 0.095 ** 2;
    case 'fp8':
      return 0.026 ** 2;
    case 'int8':
      // A step is amax/127, and amax of a few hundred normal numbers about three deviations: (3 / 127)² / 12.
      return 0.007 ** 2;
  }
}

/** Rounding to p bits costs 2^-2p / 12 to 2^-2p / 3 of the square, by where in its octave a number lies. */
function roundingNoise(dtype: 'f32' | 'bf16' | 'f16'): number {
  if (dtype === 'f32') return 0;
  return 2 ** (dtype === 'bf16' ? -16 : -22) / 6;
}

/** The intermediate is rounded to its own type and then, where inputs are floats, to theirs. */
function narrowest(intermediate: Arithmetic['intermediate'], input: Arithmetic['input']): 'f32' | 'bf16' | 'f16' {
  const types = [intermediate, input.type === 'float' ? input.dtype : 'f32'];
  if (types.includes('bf16')) return 'bf16';
  return types.includes('f16') ? 'f16' : 'f32';
}
