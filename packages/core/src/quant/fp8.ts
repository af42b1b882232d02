import { e4m3Max, e4m3Values, encodeE4m3 } from './e4m3.js';
import type { Fp8BlockWeights, Fp8ChannelWeights, Fp8TensorWeights } from './quant-scheme.js';
import { SCHEME } from './quant-scheme.js';

/** Rows and columns of a weight block, and columns of an input group, of `fp8.block128`. */
export const fp8BlockSize = 128;

const { fround } = Math;

/** [rows, columns]: e4m3 · scale, rounded to float32. */
export function decodeFp8TensorWeights(weights: Fp8TensorWeights<string>): Float32Array {
  return decode(weights, () => weights.scale);
}

/** [rows, columns]: e4m3 · rowScales[n], rounded to float32. */
export function decodeFp8ChannelWeights(weights: Fp8ChannelWeights<string>): Float32Array {
  return decode(weights, (row) => weights.rowScales[row]!);
}

/** [rows, columns]: e4m3 · blockScales[n/128, k/128], rounded to float32. */
export function decodeFp8BlockWeights(weights: Fp8BlockWeights<string>): Float32Array {
  const blocksPerRow = Math.ceil(weights.columns / fp8BlockSize);
  return decode(weights, (row, column) => weights.blockScales[((row / fp8BlockSize) | 0) * blocksPerRow + ((column / fp8BlockSize) | 0)]!);
}

/** `scaleAt` is asked once per row and run of 128 columns. */
function decode(
  { rows, columns, codes }: { readonly rows: number; readonly columns: number; readonly codes: Uint8Array },
  scaleAt: (row: number, column: number) => number,
): Float32Array {
  const out = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    for (let first = 0; first < columns; first += fp8BlockSize) {
      const scale = scaleAt(row, first);
      const end = row * columns + Math.min(first + fp8BlockSize, columns);
      for (let i = row * columns + first; i < end; i++) out[i] = e4m3Values[codes[i]!]! * scale;
    }
  }
  return out;
}

/** Quantizes `values` [rows, columns] with scale = amax/448 (1 for all zeros). */
export function encodeFp8TensorWeights<S extends 'fp8.tensor.static' | 'fp8.tensor.dynamic'>(
  values: Float32Array,
  rows: number,
  columns: number,
  options: { readonly scheme: S; readonly inputScale?: number },
): Fp8TensorWeights<S> {
  const scale = scaleFor(amaxOf(values, 0, rows * columns));
  const codes = new Uint8Array(rows * columns);
  for (let i = 0; i < codes.length; i++) codes[i] = encodeE4m3(fround(values[i]! / scale));
  return { [SCHEME]: options.scheme, rows, columns, codes, scale, inputScale: options.inputScale };
}

/** Quantizes `values` [rows, columns] with one scale per row. */
export function encodeFp8ChannelWeights(values: Float32Array, rows: number, columns: number): Fp8ChannelWeights<'fp8.channel'> {
  const codes = new Uint8Array(rows * columns);
  const rowScales = new Float32Array(rows);
  for (let row = 0; row < rows; row++) {
    const scale = scaleFor(amaxOf(values, row * columns, columns));
    rowScales[row] = scale;
    for (let i = row * columns; i < (row + 1) * columns; i++) codes[i] = encodeE4m3(fround(values[i]! / scale));
  }
  return { [SCHEME]: 'fp8.channel', rows, columns, codes, rowScales };
}

/** Quantizes `values` [rows, columns] with one scale per 128x128 block; the last blocks may be smaller. */
export function encodeFp8BlockWeights(values: Float32Array, rows: number, columns: number): Fp8BlockWeights<'fp8.block128'> {
  const blocksPerRow = Math.ceil(columns / fp8BlockSize);
  const codes = new Uint8Array(rows * columns);
  const blockScales = new Float32Array(Math.ceil(rows / fp8BlockSize) * blocksPerRow);
  for (let block = 0; block < blockScales.length; block++) {
    const firstRow = ((block / blocksPerRow) | 0) * fp8BlockSize;
    const firstColumn = (block % blocksPerRow) * fp8BlockSize;
    const endRow = Math.min(firstRow + fp8BlockSize, rows);
    const width = Math.min(fp8BlockSize, columns - firstColumn);
    let amax = 0;
    for (let row = firstRow; row < endRow; row++) amax = Math.max(amax, amaxOf(values, row * columns + firstColumn, width));
    const scale = scaleFor(amax);
    blockScales[block] = scale;
    for (let row = firstRow; row < endRow; row++) {
      const first = row * columns + firstColumn;
      for (let i = first; i < first + width; i++) codes[i] = encodeE4m3(fround(values[i]! / scale));
    }
  }
  return { [SCHEME]: 'fp8.block128', rows, columns, codes, blockScales };
}

function scaleFor(amax: number): number {
  return amax === 0 ? 1 : fround(amax / e4m3Max);
}

function amaxOf(values: Float32Array, first: number, count: number): number {
  let amax = 0;
  for (let i = first; i < first + count; i++) amax = Math.max(amax, Math.abs(values[i]!));
  return amax;
}

export type Fp8Granularity = 'tensor' | 'token' | 'group128';

/** Quantized input rows. */
export interface Fp8Input {
  readonly columns: number;
  readonly granularity: Fp8Granularity;
  /** [rows, columns] e4m3 bytes. */
  readonly codes: Uint8Array;
  /** [1], [rows] or [rows, ceil(columns/128)]. */
  readonly scales: Float32Array;
}

/**
 * Quantizes input rows to e4m3 codes: e4m3(clamp(x/s, ±448)), every step rounded to float32, divisions true ones.
 *
 * s = the calibrated scale where one is given (granularity `tensor`), else amax/448 of the tensor, of the token (at least 1/(448·512)),
 * or of 128 columns (amax at least 1e-10). A tensor of zeros has scale 0 and codes 0.
 *
 * @param x - [rows, columns] float32, row-major.
 * @see docs/numerics.md#inputs
 */
export function quantizeFp8Input(x: Float32Array, columns: number, granularity: Fp8Granularity, staticScale?: number): Fp8Input {
  const rows = x.length / columns;
  const groupColumns = granularity === 'tensor' ? x.length : granularity === 'token' ? columns : fp8BlockSize;
  const groupsPerRow = granularity === 'group128' ? Math.ceil(columns / fp8BlockSize) : 1;
  const scales = new Float32Array(granularity === 'tensor' ? 1 : rows * groupsPerRow);
  const codes = new Uint8Array(x.length);
  for (let group = 0; group < scales.length; group++) {
    const row = (group / groupsPerRow) | 0;
    const first = granularity === 'tensor' ? 0 : row * columns + (group % groupsPerRow) * fp8BlockSize;
    const count = granularity === 'group128' ? Math.min(groupColumns, (row + 1) * columns - first) : groupColumns;
    const scale = staticScale ?? inputScale(granularity, amaxOf(x, first, count));
    scales[group] = scale;
    if (scale === 0) continue;
    for (let i = first; i < first + count; i++) codes[i] = encodeE4m3(fround(x[i]! / scale));
  }
  return { columns, granularity, codes, scales };
}

function inputScale(granularity: Fp8Granularity, amax: number): number {
  if (granularity === 'token') return Math.max(fround(amax / e4m3Max), fround(1 / (e4m3Max * 512)));
  return fround((granularity === 'group128' ? Math.max(amax, fround(1e-10)) : amax) / e4m3Max);
}

/** [rows, columns]: e4m3 · s in float32. */
export function dequantizeFp8Input(input: Fp8Input): Float32Array {
  const { codes, columns, granularity, scales } = input;
  const blocksPerRow = Math.ceil(columns / fp8BlockSize);
  return decode({ rows: codes.length / columns, columns, codes }, (row, column) => {
    if (granularity === 'tensor') return scales[0]!;
    return scales[granularity === 'token' ? row : row * blocksPerRow + ((column / fp8BlockSize) | 0)]!;
  });
}
