/**
 * e8m0, the block scale of MX formats: a bare exponent, 2^(byte − 127); 255 is NaN (OCP Microscaling Formats Specification, 1.0).
 */

/** Value of each of the 256 bytes. Byte 0 is the float32 subnormal 2^-127. */
export const e8m0Values: Float32Array = Float32Array.from({ length: 256 }, (_, byte) => (byte === 255 ? NaN : 2 ** (byte - 127)));

/** Value of a byte. */
export function decodeE8m0(byte: number): number {
  return e8m0Values[byte & 255]!;
}

/** Smallest power of two that is not below `value`, as a byte; 0 for zero, at most 254. */
export function encodeE8m0AtLeast(value: number): number {
  if (!(value > 0)) return 0;
  let exponent = Math.ceil(Math.log2(value));
  // The logarithm of a power of two may come out a little to either side.
  if (2 ** (exponent - 1) >= value) exponent--;
  else if (2 ** exponent < value) exponent++;
  return Math.min(Math.max(exponent + 127, 0), 254);
}
