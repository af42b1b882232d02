/**
 * Element types, named as in the field. Sizes are in bits because four-bit codes exist.
 *
 * `f8e4m3` is e4m3fn: no infinities, 0x7F and 0xFF are NaN (OCP 8-bit Floating Point Specification, 1.0).
 * `f8e8m0` is a bare exponent, 2^(b-127), 255 is NaN (OCP Microscaling Formats Specification, 1.0).
 */
export type DType =
  | 'f64'
  | 'f32'
  | 'f16'
  | 'bf16'
  | 'f8e4m3'
  | 'f8e5m2'
  | 'f8e8m0'
  | 'i64'
  | 'i32'
  | 'i16'
  | 'i8'
  | 'u64'
  | 'u32'
  | 'u16'
  | 'u8'
  | 'bool'
  // Only as names in files: nothing computes with them.
  | 'c64'
  | 'f6e2m3'
  | 'f6e3m2'
  | 'f4e2m1';

const bits: Readonly<Record<DType, number>> = {
  f64: 64,
  f32: 32,
  f16: 16,
  bf16: 16,
  f8e4m3: 8,
  f8e5m2: 8,
  f8e8m0: 8,
  i64: 64,
  i32: 32,
  i16: 16,
  i8: 8,
  u64: 64,
  u32: 32,
  u16: 16,
  u8: 8,
  bool: 8,
  c64: 64,
  f6e2m3: 6,
  f6e3m2: 6,
  f4e2m1: 4,
};

/** Bits of one element. */
export function bitsOf(dtype: DType): number {
  return bits[dtype];
}

/** Bytes of one element. */
export function bytesOf(dtype: DType): number {
  return bits[dtype] / 8;
}
