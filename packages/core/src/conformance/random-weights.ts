import { SCHEME } from '../quant/quant-scheme.js';
import type { SchemeKey, SchemeRegistry } from '../quant/quant-scheme.js';
import type { Random } from '../random.js';

/**
 * Random weights in the formats of checkpoints. Codes are drawn, not encoded: every code occurs (−0, subnormals, the
 * largest), only NaN does not. Scales are chosen so that decoded weights have a root mean square of about 1/sqrt(columns), and
 * differ enough from row to row and block to block that a scale in the wrong place shows.
 */
export type RandomMatrix<S extends SchemeKey> = (
  rows: number,
  columns: number,
  random: Random,
  options: RandomMatrixOptions,
) => SchemeRegistry[S];

export interface RandomMatrixOptions {
  /** Largest input magnitude that a static input scale is calibrated for. */
  readonly inputAmax: number;
}

/** One matrix of `scheme`. @throws {TypeError} for a scheme that the core does not define. */
export function randomMatrix<S extends SchemeKey>(
  scheme: S,
  rows: number,
  columns: number,
  random: Random,
  options: RandomMatrixOptions,
): SchemeRegistry[S] {
  const make = makers[scheme] as RandomMatrix<S> | undefined;
  if (make === undefined)
    throw new TypeError(`There are no random weights for the scheme "${scheme}": give the suite a "schemes" entry that makes them.`);
  return make(rows, columns, random, options);
}

const makers: { readonly [S in SchemeKey]: RandomMatrix<S> } = {
  'nvfp4.w4a4': (rows, columns, random, { inputAmax }) => ({
    [SCHEME]: 'nvfp4.w4a4',
    ...nvfp4(rows, columns, random),
    inputScale: Math.fround((inputAmax * between(random, 0.9, 1.1)) / (6 * 448)),
  }),
  'nvfp4.w4a16': (rows, columns, random) => ({ [SCHEME]: 'nvfp4.w4a16', ...nvfp4(rows, columns, random), inputScale: undefined }),
  'fp8.tensor.static': (rows, columns, random, { inputAmax }) => ({
    [SCHEME]: 'fp8.tensor.static',
    ...fp8Tensor(rows, columns, random),
    inputScale: Math.fround((inputAmax * between(random, 0.9, 1.1)) / 448),
  }),
  'fp8.tensor.dynamic': (rows, columns, random) => ({
    [SCHEME]: 'fp8.tensor.dynamic',
    ...fp8Tensor(rows, columns, random),
    inputScale: undefined,
  }),
  'fp8.channel': (rows, columns, random) => ({
    [SCHEME]: 'fp8.channel',
    rows,
    columns,
    codes: fp8Codes(rows * columns, random),
    rowScales: scales(rows, fp8Scale(columns), random),
  }),
  'fp8.block128': (rows, columns, random) => ({
    [SCHEME]: 'fp8.block128',
    rows,
    columns,
    codes: fp8Codes(rows * columns, random),
    blockScales: scales(Math.ceil(rows / 128) * Math.ceil(columns / 128), fp8Scale(columns), random),
  }),
  'mxfp4.w4a16': (rows, columns, random) => {
    const codes = bytes((rows * columns) / 2, random);
    const blockScales = new Uint8Array((rows * columns) / 32);
    // Powers of two around 1 / (rms of e2m1 codes * sqrt(columns)).
    const middle = 127 + Math.round(Math.log2(e2m1Unit / Math.sqrt(columns)));
    for (let i = 0; i < blockScales.length; i++) blockScales[i] = middle - 1 + random.int(3);
    return { [SCHEME]: 'mxfp4.w4a16', rows, columns, codes, blockScales };
  },
  bf16: (rows, columns, random) => {
    const values = new Uint16Array(rows * columns);
    for (let i = 0; i < values.length; i++) values[i] = bf16Bits(random.normal() / Math.sqrt(columns));
    return { [SCHEME]: 'bf16', rows, columns, values };
  },
  f16: (rows, columns, random) => {
    const values = new Uint16Array(rows * columns);
    // Any normal half of magnitude 2^-3 .. 2^1 over sqrt(columns): sign, an exponent of four, ten bits of fraction.
    const middle = Math.round(15 - 0.5 * Math.log2(columns));
    for (let i = 0; i < values.length; i++) {
      const word = random.uint32();
      values[i] = ((word & 1) << 15) | (Math.max(1, middle - 3 + ((word >>> 1) & 3)) << 10) | ((word >>> 3) & 0x3ff);
    }
    return { [SCHEME]: 'f16', rows, columns, values };
  },
};

/** 1 / root mean square of uniformly drawn e2m1 codes: mean of 0, .25, 1, 2.25, 4, 9, 16, 36 is 8.5625. */
const e2m1Unit = 1 / Math.sqrt(8.5625);

/** 1 / root mean square of the codes that {@link fp8Codes} draws. */
const fp8Unit = 1 / rmsOfE4m3Codes();

function rmsOfE4m3Codes(): number {
  let sum = 0;
  for (let code = 0; code < 127; code++) {
    const exponent = code >> 3;
    sum += exponent === 0 ? ((code & 7) * 2 ** -9) ** 2 : ((8 + (code & 7)) * 2 ** (exponent - 10)) ** 2;
  }
  return Math.sqrt(sum / 127);
}

function nvfp4(
  rows: number,
  columns: number,
  random: Random,
): { rows: number; columns: number; codes: Uint8Array; blockScales: Uint8Array; globalScale: number; globalScaleIs: 'factor' | 'divisor' } {
  const codes = bytes((rows * columns) / 2, random);
  const blockScales = new Uint8Array((rows * columns) / 16);
  fillNvfp4BlockScales(blockScales, random);
  const globalScale = nvfp4GlobalScale(columns) * between(random, 0.7, 1.4);
  const isDivisor = random.uniform() < 0.5;
  return {
    rows,
    columns,
    codes,
    blockScales,
    globalScale: Math.fround(isDivisor ? 1 / globalScale : globalScale),
    globalScaleIs: isDivisor ? 'divisor' : 'factor',
  };
}

function fp8Tensor(rows: number, columns: number, random: Random): { rows: number; columns: number; codes: Uint8Array; scale: number } {
  return {
    rows,
    columns,
    codes: fp8Codes(rows * columns, random),
    scale: Math.fround(fp8Scale(columns) * between(random, 0.7, 1.4)),
  };
}

/** All e4m3 codes but NaN (0x7F, 0xFF). */
function fp8Codes(length: number, random: Random): Uint8Array {
  const codes = new Uint8Array(length);
  fillE4m3Codes(codes, random);
  return codes;
}

/** As {@link fp8Codes}, in place. */
export function fillE4m3Codes(target: Uint8Array, random: Random): void {
  random.fillBytes(target);
  for (let i = 0; i < target.length; i++) {
    const code = target[i]!;
    if ((code & 0x7f) === 0x7f) target[i] = code ^ 1;
  }
}

/** e4m3 bytes 0x60 .. 0x77: 32 .. 240, three octaves. */
export function fillNvfp4BlockScales(target: Uint8Array, random: Random): void {
  random.fillBytes(target);
  for (let i = 0; i < target.length; i++) target[i] = 0x60 + (target[i]! % 0x18);
}

/** The factor that brings codes and scales as drawn here to 1/sqrt(columns); those scales have a root mean square of about 130. */
export function nvfp4GlobalScale(columns: number): number {
  return e2m1Unit / Math.sqrt(columns) / 130;
}

/** The scale that brings codes of {@link fillE4m3Codes} to 1/sqrt(columns). */
export function fp8Scale(columns: number): number {
  return fp8Unit / Math.sqrt(columns);
}

/**
 * Random bf16 numbers of about the given root mean square: any sign and fraction, magnitudes over four octaves. Quicker than normal
 * ones by far, for checkpoints of gigabytes.
 *
 * @param target - aligned to four bytes, an even number of bytes.
 */
export function fillBf16(target: Uint8Array, rms: number, random: Random): void {
  random.fillBytes(target);
  const patterns = new Uint16Array(target.buffer, target.byteOffset, target.byteLength >> 1);
  // A random pattern keeps sign and fraction; two of its exponent bits choose an octave. Magnitudes of octave e have a mean square
  // of 7/3 * 4^e, and the mean over the octaves top - 3 .. top of 4^e is 0.332 * 4^top.
  const top = 127 + Math.round(Math.log2(rms / Math.sqrt((7 / 3) * 0.332)));
  for (let i = 0; i < patterns.length; i++) {
    const pattern = patterns[i]!;
    patterns[i] = (pattern & 0x807f) | ((top - ((pattern >>> 7) & 3)) << 7);
  }
}

function bytes(length: number, random: Random): Uint8Array {
  if (!Number.isInteger(length)) throw new RangeError('The sizes do not fill whole bytes or blocks of the format.');
  const result = new Uint8Array(length);
  random.fillBytes(result);
  return result;
}

function scales(length: number, middle: number, random: Random): Float32Array {
  return Float32Array.from({ length }, () => middle * between(random, 0.5, 1.5));
}

function between(random: Random, low: number, high: number): number {
  return low + (high - low) * random.uniform();
}

const word = new Float32Array(1);
const wordBits = new Uint32Array(word.buffer);

/** Truncated to bf16: which way is of no matter for random values. */
function bf16Bits(value: number): number {
  word[0] = value;
  return (wordBits[0] ?? 0) >>> 16;
}
