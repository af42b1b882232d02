import { e2m1Max, e2m1Values, encodeE2m1 } from './e2m1.js';
import { decodeE8m0, e8m0Values, encodeE8m0AtLeast } from './e8m0.js';
import type { Mxfp4Weights } from './quant-scheme.js';
import { SCHEME } from './quant-scheme.js';

/** Columns that share a block scale. */
export const mxfp4GroupColumns = 32;

/** [rows, columns]: e2m1 · 2^(scale − 127), exact in float32 (and in bfloat16). */
export function decodeMxfp4Weights(weights: Mxfp4Weights<string>): Float32Array {
  const { rows, columns, codes, blockScales } = weights;
  const out = new Float32Array(rows * columns);
  for (let i = 0; i < out.length; i += 2) {
    const byte = codes[i >> 1]!;
    const scale = e8m0Values[blockScales[(i / mxfp4GroupColumns) | 0]!]!;
    out[i] = e2m1Values[byte & 15]! * scale;
    out[i + 1] = e2m1Values[byte >> 4]! * scale;
  }
  return out;
}

/** Quantizes `values` [rows, columns]: scale = the smallest power of two that brings the block's largest magnitude to at most 6. */
export function encodeMxfp4Weights(values: Float32Array, rows: number, columns: number): Mxfp4Weights<'mxfp4.w4a16'> {
  const codes = new Uint8Array((rows * columns) / 2);
  const blockScales = new Uint8Array((rows * columns) / mxfp4GroupColumns);
  for (let block = 0; block < blockScales.length; block++) {
    const first = block * mxfp4GroupColumns;
    let amax = 0;
    for (let i = first; i < first + mxfp4GroupColumns; i++) amax = Math.max(amax, Math.abs(values[i]!));
    const byte = encodeE8m0AtLeast(amax / e2m1Max);
    blockScales[block] = byte;
    const scale = decodeE8m0(byte);
    for (let i = first; i < first + mxfp4GroupColumns; i += 2) {
      codes[i >> 1] = encodeE2m1(values[i]! / scale) | (encodeE2m1(values[i + 1]! / scale) << 4);
    }
  }
  return { [SCHEME]: 'mxfp4.w4a16', rows, columns, codes, blockScales };
}
