/**
 * e4m3fn, the eight-bit float of FP8 weights and of NVFP4 block scales: bias 7, no infinities, 0x7F and 0xFF are NaN
 * (OCP 8-bit Floating Point Specification, 1.0). Magnitudes reach from 2^-9 to 448.
 */

import { wordView } from './word-view.js';

/** Largest finite magnitude. */
export const e4m3Max = 448;

/** Value of each of the 256 bytes. */
export const e4m3Values: Float32Array = Float32Array.from({ length: 256 }, (_, byte) => {
  const exponent = (byte >> 3) & 15;
  const mantissa = byte & 7;
  if (exponent === 15 && mantissa === 7) return NaN;
  const magnitude = exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10);
  return byte & 0x80 ? -magnitude : magnitude;
});

/** Value of a byte. */
export function decodeE4m3(byte: number): number {
  return e4m3Values[byte & 255]!;
}

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/**
 * Nearest byte for a float32 value, ties to the even mantissa (17 → 16, 19 → 20); magnitudes above 448 are clamped first, so that
 * nothing finite becomes NaN. NaN stays NaN (0x7F).
 */
export function encodeE4m3(value: number): number {
  if (Number.isNaN(value)) return 0x7f;
  float[0] = value;
  const pattern = bits[0]!;
  const sign = (pattern >>> 24) & 0x80;
  const magnitude = Math.abs(value);
  if (magnitude >= e4m3Max) return sign | 0x7e;
  // Below 2^-6 the codes are multiples of 2^-9. Adding and taking away 2^52 rounds a double to an integer, ties to even.
  if (magnitude < 0.015625) return sign | (magnitude * 512 + 2 ** 52 - 2 ** 52);
  // Drop 20 of the 23 mantissa bits, ties to even, then move the exponent's bias from 127 to 7.
  const absolute = pattern & 0x7fffffff;
  return sign | (((absolute + 0x7ffff + ((absolute >>> 20) & 1)) >>> 20) - (120 << 3));
}

/**
 * Position of the first byte of `bytes` that is NaN or negative, −1 when there is none. Zero of either sign is allowed. Eight bytes at a time:
 * a tenth of an NVFP4 checkpoint are such scales.
 */
export function findInvalidE4m3Scale(bytes: Uint8Array): number {
  const { head, words } = wordView(bytes, 2);
  const atHead = findInvalidFrom(bytes, 0, head);
  if (atHead >= 0) return atHead;
  let found = 0;
  let at = 0;
  for (; at < words.length && found === 0; at += 2) {
    const a = words[at]!;
    const b = words[at + 1]!;
    const magnitudeA = a & 0x7f7f7f7f;
    const magnitudeB = b & 0x7f7f7f7f;
    // Adding 1 lifts the magnitude 0x7F, which is NaN, into the sign's place; adding 0x7F lifts every one but zero, which counts beside a sign.
    found =
      ((magnitudeA + 0x01010101) | ((magnitudeA + 0x7f7f7f7f) & a) | (magnitudeB + 0x01010101) | ((magnitudeB + 0x7f7f7f7f) & b)) &
      0x80808080;
  }
  return findInvalidFrom(bytes, head + 4 * (found === 0 ? at : at - 2), bytes.length);
}

function findInvalidFrom(bytes: Uint8Array, begin: number, end: number): number {
  for (let i = begin; i < end; i++) {
    const byte = bytes[i]!;
    if (byte >= 0x7f && byte !== 0x80) return i;
  }
  return -1;
}
