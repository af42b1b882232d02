import { MoeError } from '../errors.js';
import { SCHEME } from '../quant/quant-scheme.js';
import type { SchemeKey, SchemeRegistry } from '../quant/quant-scheme.js';
import { assembleMatrix, matrixParts, weightFormat } from './matrix-parts.js';
import type { MatrixArrays, MatrixNumbers, WeightFormat } from './matrix-parts.js';
import { swizzleScales, swizzledScalesBytes, unswizzleScales } from './swizzled-scales.js';
import type { RowPlacement } from './swizzled-scales.js';

/** Several stacks of matrices of one scheme: gate and up of every expert, or the modules of a linear in a single stack. */
export interface MatrixStackShape {
  readonly scheme: SchemeKey;
  /** Experts; 1 for a linear. */
  readonly numStacks: number;
  /** Rows of each matrix of a stack. */
  readonly partRows: readonly number[];
  /** The same for all matrices. */
  readonly columns: number;
  readonly hasBias: boolean;
}

/** What a layout can choose. */
export interface MatrixOrder {
  /** `stacked`: one matrix after the other. `interleaved`: row 0 of each, row 1 of each, …; all matrices of a stack have as many rows. */
  readonly rows: 'stacked' | 'interleaved';
  /** Order of one-byte block scales; see swizzled-scales.ts. The unit that is swizzled is the stack. */
  readonly blockScales: 'row-major' | 'swizzled';
}

/**
 * Weights as kernels read them: one buffer per kind of tensor, stack by stack. R = rows of a stack, P = its matrices, K = columns.
 *
 * | tensor | per stack | schemes |
 * |---|---|---|
 * | codes | [R, K] of 4, 8 or 16 bits, row-major | all |
 * | blockScales | [R, K/16 or K/32] bytes | nvfp4, mxfp4 |
 * | scales | nvfp4, fp8.tensor: [P] factors; fp8.channel: [R]; fp8.block128: per matrix [ceil(rows/128), ceil(K/128)] | but bf16, f16, mxfp4 |
 * | inputScales | [P], NaN where the checkpoint has none | nvfp4.w4a4, fp8.tensor.static |
 * | bias | [R] | with biases |
 */
export interface StackTensors {
  readonly codes: Uint8Array;
  readonly blockScales: Uint8Array;
  readonly scales: Float32Array;
  readonly inputScales: Float32Array;
  readonly bias: Float32Array;
}

type TensorName = keyof StackTensors;

/** Bytes of all tensors. */
export function matrixStackBytes(shape: MatrixStackShape, order: MatrixOrder): number {
  const perStack = lengthsOf(shape, order);
  const words = perStack.scales + perStack.inputScales + perStack.bias;
  return shape.numStacks * (perStack.codes + perStack.blockScales + 4 * words);
}

/** Holds the tensors, and the few numbers per matrix that they do not keep as the checkpoint has them. */
export class MatrixStack {
  readonly shape: MatrixStackShape;
  readonly tensors: StackTensors;
  readonly #order: MatrixOrder;
  readonly #format: WeightFormat;
  readonly #lengths: Readonly<Record<TensorName, number>>;
  readonly #numbers: MatrixNumbers[] = [];

  /** @throws {RangeError} when there is not that much memory. */
  constructor(shape: MatrixStackShape, order: MatrixOrder) {
    this.shape = shape;
    this.#order = order;
    this.#format = weightFormat(shape.scheme);
    this.#lengths = lengthsOf(shape, order);
    const total = (name: TensorName): number => shape.numStacks * this.#lengths[name];
    this.tensors = {
      codes: new Uint8Array(total('codes')),
      blockScales: new Uint8Array(total('blockScales')),
      scales: new Float32Array(total('scales')),
      inputScales: new Float32Array(total('inputScales')),
      bias: new Float32Array(total('bias')),
    };
  }

  get byteLength(): number {
    return matrixStackBytes(this.shape, this.#order);
  }

  /**
   * Copies a matrix to its place.
   *
   * @param name - of the matrix, for messages.
   * @param bias - [rows]; required exactly when the shape has biases.
   * @throws {MoeError} MOE_CHECKPOINT_TENSOR when the matrix or its arrays do not have the sizes of the shape, or another scheme.
   */
  put(name: string, stack: number, part: number, matrix: SchemeRegistry[SchemeKey], bias: Float32Array | undefined): void {
    const { scheme, columns, hasBias } = this.shape;
    const rows = this.#rowsOf(part);
    expectEqual(name, 'scheme', scheme, matrix[SCHEME]);
    expectEqual(name, 'shape', `[${rows}, ${columns}]`, `[${matrix.rows}, ${matrix.columns}]`);
    expectEqual(name, 'bias', hasBias ? `of ${rows} values` : 'none', bias === undefined ? 'none' : `of ${bias.length} values`);
    const { arrays, numbers } = matrixParts(matrix);
    const { codes, scaleCodes, scales } = arrays;
    const { columnsPerScale } = this.#format;
    const rowBytes = this.#rowBytes();
    expectEqual(name, 'number of code bytes', rows * rowBytes, codes.length);
    const at = this.#placement(part);
    copyRows(this.#slice('codes', stack), codes, rowBytes, at);
    if (scaleCodes !== undefined && columnsPerScale !== undefined) {
      const perRow = columns / columnsPerScale;
      expectEqual(name, 'number of block scales', rows * perRow, scaleCodes.length);
      const target = this.#slice('blockScales', stack);
      if (this.#order.blockScales === 'swizzled') swizzleScales(target, scaleCodes, perRow, at);
      else copyRows(target, scaleCodes, perRow, at);
    }
    this.#putScales(name, stack, part, scales, numbers);
    if (bias !== undefined) copyRows(this.#slice('bias', stack), bias, 1, at);
    this.#numbers[stack * this.shape.partRows.length + part] = numbers;
  }

  /** The matrix as it was put, in new arrays. */
  matrix(stack: number, part: number): SchemeRegistry[SchemeKey] {
    const { scheme, columns, partRows } = this.shape;
    const rows = this.#rowsOf(part);
    const numbers = this.#numbers[stack * partRows.length + part];
    if (numbers === undefined) throw new RangeError(`matrix ${part} of stack ${stack} was never put`);
    const { columnsPerScale, scales } = this.#format;
    const at = this.#placement(part);
    const codes = rowsAt(this.#slice('codes', stack), new Uint8Array(rows * this.#rowBytes()), this.#rowBytes(), at);
    const arrays: { -readonly [K in keyof MatrixArrays]: MatrixArrays[K] } = { codes };
    if (columnsPerScale !== undefined) {
      const perRow = columns / columnsPerScale;
      const source = this.#slice('blockScales', stack);
      arrays.scaleCodes =
        this.#order.blockScales === 'swizzled'
          ? unswizzleScales(source, rows, perRow, at)
          : rowsAt(source, new Uint8Array(rows * perRow), perRow, at);
    }
    if (scales === 'row') arrays.scales = rowsAt(this.#slice('scales', stack), new Float32Array(rows), 1, at);
    if (scales === 'block128') {
      const first = this.#firstBlock(part);
      arrays.scales = this.#slice('scales', stack).slice(first, first + blocksOf(rows, columns));
    }
    return assembleMatrix(scheme, rows, columns, arrays, numbers);
  }

  /** [rows] of one matrix, in a new array; undefined when the shape has no biases. */
  bias(stack: number, part: number): Float32Array | undefined {
    if (!this.shape.hasBias) return undefined;
    return rowsAt(this.#slice('bias', stack), new Float32Array(this.#rowsOf(part)), 1, this.#placement(part));
  }

  #putScales(name: string, stack: number, part: number, scales: Float32Array | undefined, numbers: MatrixNumbers): void {
    const target = this.#slice('scales', stack);
    const rows = this.#rowsOf(part);
    switch (this.#format.scales) {
      case 'none':
        break;
      case 'matrix': {
        const { globalScale = 1, globalScaleIs, scale } = numbers;
        target[part] = scale ?? (globalScaleIs === 'divisor' ? 1 / globalScale : globalScale);
        break;
      }
      case 'row':
        expectEqual(name, 'number of row scales', rows, scales?.length);
        if (scales !== undefined) copyRows(target, scales, 1, this.#placement(part));
        break;
      case 'block128':
        expectEqual(name, 'number of block scales', blocksOf(rows, this.shape.columns), scales?.length);
        if (scales !== undefined) target.set(scales, this.#firstBlock(part));
        break;
    }
    if (this.#format.hasInputScale) this.#slice('inputScales', stack)[part] = numbers.inputScale ?? NaN;
  }

  #rowsOf(part: number): number {
    const rows = this.shape.partRows[part];
    if (rows === undefined) throw new RangeError(`a stack has ${this.shape.partRows.length} matrices, not one numbered ${part}`);
    return rows;
  }

  #rowBytes(): number {
    return (this.shape.columns * this.#format.bitsPerCode) / 8;
  }

  #placement(part: number): RowPlacement {
    const { partRows } = this.shape;
    if (this.#order.rows === 'interleaved') return { first: part, step: partRows.length };
    return { first: sumOf(partRows.slice(0, part)), step: 1 };
  }

  #firstBlock(part: number): number {
    return sumOf(this.shape.partRows.slice(0, part).map((rows) => blocksOf(rows, this.shape.columns)));
  }

  #slice<Name extends TensorName>(name: Name, stack: number): StackTensors[Name] {
    const length = this.#lengths[name];
    // A subarray has the type of its array.
    return this.tensors[name].subarray(stack * length, (stack + 1) * length) as StackTensors[Name];
  }
}

/** Elements per stack. */
function lengthsOf({ scheme, partRows, columns, hasBias }: MatrixStackShape, order: MatrixOrder): Readonly<Record<TensorName, number>> {
  const { bitsPerCode, columnsPerScale, scales, hasInputScale } = weightFormat(scheme);
  if (order.rows === 'interleaved' && partRows.some((count) => count !== partRows[0])) {
    throw new RangeError(`matrices of ${partRows.join(' and ')} rows cannot be interleaved`);
  }
  const rows = sumOf(partRows);
  const scaleColumns = columnsPerScale === undefined ? 0 : columns / columnsPerScale;
  const scaleCounts = {
    none: 0,
    matrix: partRows.length,
    row: rows,
    block128: sumOf(partRows.map((count) => blocksOf(count, columns))),
  };
  return {
    codes: (rows * columns * bitsPerCode) / 8,
    blockScales: order.blockScales === 'swizzled' ? swizzledScalesBytes(rows, scaleColumns) : rows * scaleColumns,
    scales: scaleCounts[scales],
    inputScales: hasInputScale ? partRows.length : 0,
    bias: hasBias ? rows : 0,
  };
}

/** Scales of a matrix in blocks of 128x128. */
function blocksOf(rows: number, columns: number): number {
  return Math.ceil(rows / 128) * Math.ceil(columns / 128);
}

function sumOf(counts: readonly number[]): number {
  return counts.reduce((sum, count) => sum + count, 0);
}

/** Copies rows of `width` elements to their places. */
function copyRows<T extends Uint8Array | Float32Array>(target: T, source: T, width: number, { first, step }: RowPlacement): void {
  if (step === 1) {
    target.set(source, first * width);
    return;
  }
  for (let row = 0; row * width < source.length; row++) {
    target.set(source.subarray(row * width, (row + 1) * width), (first + row * step) * width);
  }
}

/** The inverse of {@link copyRows}: fills `target` and returns it. */
function rowsAt<T extends Uint8Array | Float32Array>(source: T, target: T, width: number, { first, step }: RowPlacement): T {
  for (let row = 0; row * width < target.length; row++) {
    const start = (first + row * step) * width;
    target.set(source.subarray(start, start + width), row * width);
  }
  return target;
}

function expectEqual(matrix: string, what: string, expected: unknown, actual: unknown): void {
  if (expected === actual) return;
  throw new MoeError('MOE_CHECKPOINT_TENSOR', `${matrix}: expected ${what} ${String(expected)}, got ${String(actual)}.`, {
    matrix,
    expected,
    actual,
  });
}
