import type { Bf16Weights } from './quant-scheme.js';
import { SCHEME } from './quant-scheme.js';

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** Value of a bfloat16 bit pattern. */
export function decodeBf16(pattern: number): number {
  bits[0] = pattern << 16;
  return float[0]!;
}

/** Bit pattern of the nearest bfloat16 of a float32 value, ties to even. NaN stays a quiet NaN. */
export function encodeBf16(value: number): number {
  float[0] = value;
  const pattern = bits[0]!;
  if (Number.isNaN(value)) return (pattern >>> 16) | 0x40;
  // >>> 0 first: the sum may pass 2^31 for negative values.
  return ((pattern + 0x7fff + ((pattern >>> 16) & 1)) >>> 0) >>> 16;
}

/** A float32 value rounded to bfloat16. */
export function roundToBf16(value: number): number {
  return decodeBf16(encodeBf16(value));
}

/** Values of bfloat16 bit patterns. */
export function bf16ToFloat32(patterns: Uint16Array): Float32Array {
  const out = new Uint32Array(patterns.length);
  for (let i = 0; i < out.length; i++) out[i] = patterns[i]! << 16;
  return new Float32Array(out.buffer);
}

/** Bit patterns of float32 values rounded to bfloat16. */
export function float32ToBf16(values: Float32Array): Uint16Array {
  const out = new Uint16Array(values.length);
  for (let i = 0; i < out.length; i++) out[i] = encodeBf16(values[i]!);
  return out;
}

/** Rounds `values` [rows, columns] to bfloat16 weights. */
export function encodeBf16Weights(values: Float32Array, rows: number, columns: number): Bf16Weights {
  return { [SCHEME]: 'bf16', rows, columns, values: float32ToBf16(values.subarray(0, rows * columns)) };
}

/** [rows, columns], exact. */
export function decodeBf16Weights(weights: Bf16Weights<string>): Float32Array {
  return bf16ToFloat32(weights.values);
}
