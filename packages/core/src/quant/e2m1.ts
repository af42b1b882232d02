/**
 * e2m1, the four-bit float of NVFP4 and MXFP4: one sign bit, two exponent bits, one mantissa bit; no infinities, no NaN
 * (OCP Microscaling Formats Specification, 1.0). A code is sign << 3 | magnitude index.
 */

/** Value of each of the 16 codes; code 8 is −0. */
export const e2m1Values: Float32Array = Float32Array.of(0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6);

/** Largest magnitude. */
export const e2m1Max = 6;

/** Value of a code, 0..15. */
export function decodeE2m1(code: number): number {
  return e2m1Values[code & 15]!;
}

/**
 * Nearest code, ties to the even one (.25 → 0, .75 → 1, 2.5 → 2, 5 → 4); magnitudes above 6 saturate. The sign of zero is kept and
 * NaN becomes +6, as `cvt.rn.satfinite.e2m1x2.f32` has it.
 */
export function encodeE2m1(value: number): number {
  const magnitude = Math.abs(value);
  let index = 7;
  if (magnitude <= 0.25) index = 0;
  else if (magnitude < 0.75) index = 1;
  else if (magnitude <= 1.25) index = 2;
  else if (magnitude < 1.75) index = 3;
  else if (magnitude <= 2.5) index = 4;
  else if (magnitude < 3.5) index = 5;
  else if (magnitude <= 5) index = 6;
  return value < 0 || Object.is(value, -0) ? index | 8 : index;
}
