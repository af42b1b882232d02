import type { Fp16Weights } from './quant-scheme.js';

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** Value of an IEEE half bit pattern. */
export function decodeF16(pattern: number): number {
  const sign = pattern & 0x8000 ? -1 : 1;
  const exponent = (pattern >>> 10) & 31;
  const mantissa = pattern & 0x3ff;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  if (exponent === 31) return mantissa === 0 ? sign * Infinity : NaN;
  return sign * (1024 + mantissa) * 2 ** (exponent - 25);
}

/** Bit pattern of the nearest half of a float32 value, ties to even; magnitudes from 65520 on become infinite. */
export function encodeF16(value: number): number {
  float[0] = value;
  const pattern = bits[0]!;
  const sign = (pattern >>> 16) & 0x8000;
  const magnitude = Math.abs(value);
  if (Number.isNaN(value)) return sign | 0x7e00;
  if (magnitude >= 65520) return sign | 0x7c00;
  // Below 2^-14 halves are multiples of 2^-24; 2^52 rounds a double to an integer, ties to even.
  if (magnitude < 2 ** -14) return sign | (magnitude * 2 ** 24 + 2 ** 52 - 2 ** 52);
  const absolute = pattern & 0x7fffffff;
  return sign | (((absolute + 0xfff + ((absolute >>> 13) & 1)) >>> 13) - (112 << 10));
}

/** A float32 value rounded to half precision. */
export function roundToF16(value: number): number {
  return decodeF16(encodeF16(value));
}

/** Values of half bit patterns. */
export function f16ToFloat32(patterns: Uint16Array): Float32Array {
  return Float32Array.from(patterns, decodeF16);
}

/** [rows, columns], exact. */
export function decodeF16Weights(weights: Fp16Weights<string>): Float32Array {
  return f16ToFloat32(weights.values);
}
