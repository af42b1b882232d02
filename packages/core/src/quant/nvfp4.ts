import { e2m1Max, e2m1Values, encodeE2m1 } from './e2m1.js';
import { decodeE4m3, e4m3Max, e4m3Values, encodeE4m3 } from './e4m3.js';
import type { Nvfp4Weights } from './quant-scheme.js';
import { SCHEME } from './quant-scheme.js';

/** Columns that share a block scale. */
export const nvfp4GroupColumns = 16;

const { fround } = Math;

/** [rows, columns]: e2m1 · (block scale · global scale), or block scale / global scale for divisors; every step rounded to float32. */
export function decodeNvfp4Weights(weights: Nvfp4Weights<string>): Float32Array {
  const { rows, columns, codes, blockScales, globalScale, globalScaleIs } = weights;
  const scaleOf = new Float32Array(256);
  for (let byte = 0; byte < 256; byte++) {
    const scale = e4m3Values[byte]!;
    scaleOf[byte] = globalScaleIs === 'factor' ? scale * globalScale : scale / globalScale;
  }
  return decodeBlocks(rows * columns, codes, (block) => scaleOf[blockScales[block]!]!);
}

function decodeBlocks(count: number, codes: Uint8Array, scaleOfBlock: (block: number) => number): Float32Array {
  const out = new Float32Array(count);
  const numBlocks = count / nvfp4GroupColumns;
  for (let block = 0; block < numBlocks; block++) {
    const scale = scaleOfBlock(block);
    for (let i = block * nvfp4GroupColumns; i < (block + 1) * nvfp4GroupColumns; i += 2) {
      const byte = codes[i >> 1]!;
      out[i] = e2m1Values[byte & 15]! * scale;
      out[i + 1] = e2m1Values[byte >> 4]! * scale;
    }
  }
  return out;
}

export interface Nvfp4EncodeOptions<S extends 'nvfp4.w4a4' | 'nvfp4.w4a16'> {
  readonly scheme: S;
  /** modelopt stores a factor, compressed-tensors a divisor. */
  readonly globalScaleIs?: 'factor' | 'divisor';
  /** As stored; left out = from the largest magnitude of `values`, so that the largest block scale is 448. */
  readonly globalScale?: number;
  /** The input's global scale as a factor; w4a4 needs one. */
  readonly inputScale?: number;
}

/**
 * Quantizes `values` [rows, columns] as the exporters do (docs/numerics.md#nvfp4): global scale = amax/(6·448) or its reciprocal, block
 * scale = e4m3(amax16/(6·global)) held within [2^-9, 448], 1 for a block of zeros, codes = e2m1(value/(block scale · global scale)).
 */
export function encodeNvfp4Weights<S extends 'nvfp4.w4a4' | 'nvfp4.w4a16'>(
  values: Float32Array,
  rows: number,
  columns: number,
  options: Nvfp4EncodeOptions<S>,
): Nvfp4Weights<S> {
  const globalScaleIs = options.globalScaleIs ?? 'factor';
  const amax = amaxOf(values, 0, rows * columns) || e2m1Max * e4m3Max;
  const globalScale = fround(options.globalScale ?? (globalScaleIs === 'factor' ? amax / (e2m1Max * e4m3Max) : (e2m1Max * e4m3Max) / amax));
  const codes = new Uint8Array((rows * columns) / 2);
  const blockScales = new Uint8Array((rows * columns) / nvfp4GroupColumns);
  for (let block = 0; block < blockScales.length; block++) {
    const first = block * nvfp4GroupColumns;
    const blockAmax = amaxOf(values, first, nvfp4GroupColumns);
    const wanted =
      globalScaleIs === 'factor' ? fround(blockAmax / fround(e2m1Max * globalScale)) : fround(fround(blockAmax / e2m1Max) * globalScale);
    const byte = blockAmax === 0 ? encodeE4m3(1) : encodeE4m3(Math.min(Math.max(wanted, 2 ** -9), e4m3Max));
    blockScales[block] = byte;
    const scale = globalScaleIs === 'factor' ? fround(decodeE4m3(byte) * globalScale) : fround(decodeE4m3(byte) / globalScale);
    encodeBlock(values, first, scale, codes);
  }
  return { [SCHEME]: options.scheme, rows, columns, codes, blockScales, globalScale, globalScaleIs, inputScale: options.inputScale };
}

function encodeBlock(values: Float32Array, first: number, scale: number, codes: Uint8Array): void {
  for (let i = first; i < first + nvfp4GroupColumns; i += 2) {
    const low = encodeE2m1(fround(values[i]! / scale));
    const high = encodeE2m1(fround(values[i + 1]! / scale));
    codes[i >> 1] = low | (high << 4);
  }
}

function amaxOf(values: Float32Array, first: number, count: number): number {
  let amax = 0;
  for (let i = first; i < first + count; i++) amax = Math.max(amax, Math.abs(values[i]!));
  return amax;
}

/** Quantized input rows: what an NVFP4 x NVFP4 product reads. */
export interface Nvfp4Input {
  readonly columns: number;
  /** [rows, columns/2] packed e2m1, even column in the low nibble. */
  readonly codes: Uint8Array;
  /** [rows, columns/16] e4m3 bytes. */
  readonly blockScales: Uint8Array;
  /** The static scale that came in. */
  readonly globalScale: number;
}

/**
 * Quantizes input rows to NVFP4 with a calibrated global scale s, every step rounded to float32 and every division a true one:
 * b = e4m3(min(amax16/(6·s), 448)), codes = e2m1(x/(b·s)), all zero where b = 0. Blocks above the calibrated maximum saturate.
 *
 * @param x - [rows, columns] float32, row-major.
 * @param columns - multiple of 16.
 * @see docs/numerics.md#inputs
 */
export function quantizeNvfp4Input(x: Float32Array, columns: number, globalScale: number): Nvfp4Input {
  const codes = new Uint8Array(x.length / 2);
  const blockScales = new Uint8Array(x.length / nvfp4GroupColumns);
  const divisor = fround(e2m1Max * globalScale);
  for (let block = 0; block < blockScales.length; block++) {
    const first = block * nvfp4GroupColumns;
    const byte = encodeE4m3(Math.min(fround(amaxOf(x, first, nvfp4GroupColumns) / divisor), e4m3Max));
    blockScales[block] = byte;
    if (byte !== 0) encodeBlock(x, first, fround(decodeE4m3(byte) * globalScale), codes);
  }
  return { columns, codes, blockScales, globalScale };
}

/** [rows, columns]: e2m1 · (b · s) in float32. */
export function dequantizeNvfp4Input(input: Nvfp4Input): Float32Array {
  const { codes, blockScales, globalScale } = input;
  return decodeBlocks(codes.length * 2, codes, (block) => fround(decodeE4m3(blockScales[block]!) * globalScale));
}
