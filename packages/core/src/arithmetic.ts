import type { InputQuantization, SchemeInfo } from './quant/quant-scheme.js';

/**
 * What a kernel does to numbers, as data. The core derives the numerics class from it, and the reference
 * (`./conformance`) can execute it, so that what is declared can be judged.
 */
export interface Arithmetic {
  /** What the input of each projection is turned into before it meets a weight. */
  readonly input: InputArithmetic;
  /** `exact`: every weight takes part with its stored value. `requantized`: not. */
  readonly weights: 'exact' | 'requantized';
  /** Type in which products are summed. Exact integer partial sums within a scale group, added in f32, count as f32. */
  readonly accumulator: 'f64' | 'f32' | 'f16';
  /** Type in which activation(gate, up) is held between the projections (linears: unused, say f32). */
  readonly intermediate: 'f32' | 'bf16' | 'f16';
  /** Type of what is added to the output. */
  readonly output: 'f32' | 'bf16' | 'f16';
}

export type InputArithmetic =
  /** The input takes part as it is, rounded to this type at most. */
  | { readonly type: 'float'; readonly dtype: 'f32' | 'bf16' | 'f16' }
  /** The input is quantized exactly as its scheme says. */
  | { readonly type: 'as-scheme' }
  /** The input is quantized in a way of the kernel's own. */
  | { readonly type: 'own'; readonly quantization: InputQuantization };

/**
 * - `same`: identical weight values, inputs exactly as the scheme says, accumulator at least f32, other roundings at least bf16.
 * - `wider`: an input is rounded less than the scheme would, nothing coarser.
 * - `approximate`: anything else.
 */
export type NumericsClass = 'same' | 'wider' | 'approximate';

/** Derives the class of `arithmetic` for weights of `scheme`. Backends cannot claim one. */
export function deriveNumerics(scheme: SchemeInfo, arithmetic: Arithmetic): NumericsClass {
  const { input } = arithmetic;
  if (arithmetic.weights !== 'exact' || arithmetic.accumulator === 'f16') return 'approximate';
  // f16 has more precision than bf16 but less range: a value above 65504 would be lost.
  if (arithmetic.intermediate === 'f16' || arithmetic.output === 'f16') return 'approximate';
  if (input.type === 'as-scheme') return 'same';
  if (input.type === 'own') {
    return JSON.stringify(input.quantization) === JSON.stringify(scheme.input) ? 'same' : 'approximate';
  }
  if (input.dtype === 'f16') return 'approximate';
  return scheme.input.type === 'none' ? 'same' : 'wider';
}

/** Factors that processors have dot products for. */
export type DotType = 'int8' | 'bf16' | 'f32';

/**
 * The narrowest factors that hold what a kernel of this arithmetic multiplies: what bounds its speed where memory does not. NVFP4 codes are whole
 * numbers (of halves) on both sides; e4m3 fits bfloat16, whose products with weights of any supported format are exact in float32.
 */
export function dotTypeOf(scheme: SchemeInfo, { input }: Arithmetic): DotType {
  if (input.type === 'float') return input.dtype === 'bf16' ? 'bf16' : 'f32';
  const { type } = input.type === 'own' ? input.quantization : scheme.input;
  if (type === 'none') return 'f32';
  return type === 'fp8' ? 'bf16' : 'int8';
}
