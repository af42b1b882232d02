import type { ExpertMatrices, SchemeRegistry } from '@moe-server/core';
import { MoeError, SCHEME } from '@moe-server/core';
import type { MatrixSource, UnpackedMatrix } from './addon.js';
import type { CpuScheme } from './formats.js';

/** The weights of any scheme of this package. */
export type CpuMatrix = SchemeRegistry[CpuScheme];

/** The numbers of a matrix that the packed layout does not keep as the checkpoint has them. Plain data, a few bytes per matrix. */
export interface MatrixNotes {
  readonly scheme: CpuScheme;
  readonly rows: number;
  readonly columns: number;
  readonly globalScale?: number;
  readonly globalScaleIs?: 'factor' | 'divisor';
  readonly scale?: number;
  readonly inputScale?: number;
}

/** What the addon packs, and what is noted for the way back. */
export interface PackableMatrix {
  readonly source: MatrixSource;
  readonly notes: MatrixNotes;
}

function bytesOf(values: Uint16Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

/**
 * Prepares one matrix for the addon; copies nothing.
 *
 * @param name - of the matrix, for messages.
 * @param bias - [rows]; undefined = the group has none.
 * @throws {MoeError} MOE_CHECKPOINT_TENSOR when the matrix is not [rows, columns] or its arrays contradict that.
 */
export function packable(name: string, matrix: CpuMatrix, rows: number, columns: number, bias: Float32Array | undefined): PackableMatrix {
  const fail = (what: string, expected: unknown, actual: unknown): never => {
    throw new MoeError('MOE_CHECKPOINT_TENSOR', `${name}: expected ${what} ${String(expected)}, got ${String(actual)}.`, {
      matrix: name,
      expected,
      actual,
    });
  };
  const expectLength = (what: string, array: { readonly length: number }, length: number): void => {
    if (array.length !== length) fail(`${what} of length`, length, array.length);
  };
  if (matrix.rows !== rows || matrix.columns !== columns) {
    fail('a matrix of shape', `[${rows}, ${columns}]`, `[${matrix.rows}, ${matrix.columns}]`);
  }
  const count = rows * columns;
  const scheme = matrix[SCHEME];
  const notes = { scheme, rows, columns };
  if (bias !== undefined) expectLength('bias', bias, rows);
  const withBias = bias === undefined ? {} : { bias };
  switch (matrix[SCHEME]) {
    case 'nvfp4.w4a4':
    case 'nvfp4.w4a16': {
      if (columns % 16 !== 0) fail('columns in groups of', 16, columns);
      const { codes, blockScales, globalScale, globalScaleIs, inputScale } = matrix;
      expectLength('codes', codes, count / 2);
      expectLength('blockScales', blockScales, count / 16);
      const factor = globalScaleIs === 'factor' ? globalScale : 1 / globalScale;
      return {
        source: { codes, scaleCodes: blockScales, factor, ...withBias },
        notes: { ...notes, globalScale, globalScaleIs, ...(inputScale === undefined ? {} : { inputScale }) },
      };
    }
    case 'mxfp4.w4a16': {
      if (columns % 32 !== 0) fail('columns in groups of', 32, columns);
      const { codes, blockScales } = matrix;
      expectLength('codes', codes, count / 2);
      expectLength('blockScales', blockScales, count / 32);
      return { source: { codes, scaleCodes: blockScales, factor: 1, ...withBias }, notes };
    }
    case 'fp8.tensor.static':
    case 'fp8.tensor.dynamic': {
      const { codes, scale, inputScale } = matrix;
      expectLength('codes', codes, count);
      return {
        source: { codes, factor: scale, ...withBias },
        notes: { ...notes, scale, ...(inputScale === undefined ? {} : { inputScale }) },
      };
    }
    case 'fp8.channel': {
      const { codes, rowScales } = matrix;
      expectLength('codes', codes, count);
      expectLength('rowScales', rowScales, rows);
      return { source: { codes, rowFactors: rowScales, factor: 1, ...withBias }, notes };
    }
    case 'fp8.block128': {
      const { codes, blockScales } = matrix;
      expectLength('codes', codes, count);
      expectLength('blockScales', blockScales, Math.ceil(rows / 128) * Math.ceil(columns / 128));
      return { source: { codes, blockScales, factor: 1, ...withBias }, notes };
    }
    case 'bf16':
    case 'f16':
      expectLength('values', matrix.values, count);
      return { source: { codes: bytesOf(matrix.values), factor: 1, ...withBias }, notes };
  }
}

/** The inverse of {@link packable}: the checkpoint's form, bit for bit. */
export function restored({ scheme, rows, columns, ...notes }: MatrixNotes, unpacked: UnpackedMatrix): CpuMatrix {
  const { codes, scaleCodes, blockScales, factors } = unpacked;
  switch (scheme) {
    case 'nvfp4.w4a4':
    case 'nvfp4.w4a16': {
      const { globalScale = 1, globalScaleIs = 'factor', inputScale } = notes;
      const common = { rows, columns, codes, blockScales: scaleCodes, globalScale, globalScaleIs, inputScale };
      return scheme === 'nvfp4.w4a4' ? { [SCHEME]: scheme, ...common } : { [SCHEME]: scheme, ...common };
    }
    case 'mxfp4.w4a16':
      return { [SCHEME]: scheme, rows, columns, codes, blockScales: scaleCodes };
    case 'fp8.tensor.static':
    case 'fp8.tensor.dynamic': {
      const common = { rows, columns, codes, scale: notes.scale ?? 1, inputScale: notes.inputScale };
      return scheme === 'fp8.tensor.static' ? { [SCHEME]: scheme, ...common } : { [SCHEME]: scheme, ...common };
    }
    case 'fp8.channel':
      return { [SCHEME]: scheme, rows, columns, codes, rowScales: factors };
    case 'fp8.block128':
      return { [SCHEME]: scheme, rows, columns, codes, blockScales };
    case 'bf16':
    case 'f16': {
      const values = new Uint16Array(codes.buffer, codes.byteOffset, codes.byteLength / 2);
      return scheme === 'bf16' ? { [SCHEME]: scheme, rows, columns, values } : { [SCHEME]: scheme, rows, columns, values };
    }
  }
}

/** The matrices of one expert in the order in which the addon numbers them. */
export function matricesOf({ gate, up, down, bias }: ExpertMatrices<CpuScheme>): readonly {
  readonly projection: 'gate' | 'up' | 'down';
  readonly matrix: CpuMatrix;
  readonly bias: Float32Array | undefined;
}[] {
  return [
    { projection: 'gate', matrix: gate, bias: bias?.gate },
    { projection: 'up', matrix: up, bias: bias?.up },
    { projection: 'down', matrix: down, bias: bias?.down },
  ];
}

/** Bytes that a matrix took in the checkpoint, for progress. */
export function sourceBytes({ codes, scaleCodes, blockScales, rowFactors, bias }: MatrixSource): number {
  return [codes, scaleCodes, blockScales, rowFactors, bias].reduce((sum, array) => sum + (array?.byteLength ?? 0), 0);
}
