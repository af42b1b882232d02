import { MoeError } from '../errors.js';
import { SCHEME } from '../quant/quant-scheme.js';
import type { SchemeKey, SchemeRegistry } from '../quant/quant-scheme.js';

/** How the weights of a scheme are made up. */
export interface WeightFormat {
  readonly bitsPerCode: 4 | 8 | 16;
  /** Columns that share a scale of one byte; undefined = no such scales. */
  readonly columnsPerScale: number | undefined;
  /** float32 scales besides: none, one per matrix, one per row, or one per 128x128. */
  readonly scales: 'none' | 'matrix' | 'row' | 'block128';
  /** Inputs are quantized with a calibrated scale that the weights carry. */
  readonly hasInputScale: boolean;
}

const bits16 = { bitsPerCode: 16, columnsPerScale: undefined, scales: 'none', hasInputScale: false } as const;
const fp8 = { bitsPerCode: 8, columnsPerScale: undefined, hasInputScale: false } as const;
const nvfp4 = { bitsPerCode: 4, columnsPerScale: 16, scales: 'matrix' } as const;
const formats: Readonly<Record<string, WeightFormat>> = {
  'nvfp4.w4a4': { ...nvfp4, hasInputScale: true },
  'nvfp4.w4a16': { ...nvfp4, hasInputScale: false },
  'mxfp4.w4a16': { bitsPerCode: 4, columnsPerScale: 32, scales: 'none', hasInputScale: false },
  'fp8.tensor.static': { ...fp8, scales: 'matrix', hasInputScale: true },
  'fp8.tensor.dynamic': { ...fp8, scales: 'matrix' },
  'fp8.channel': { ...fp8, scales: 'row' },
  'fp8.block128': { ...fp8, scales: 'block128' },
  bf16: bits16,
  f16: bits16,
};

/** @throws {MoeError} MOE_UNSUPPORTED_QUANTIZATION for a scheme that a plugin added: only the plugin knows its parts. */
export function weightFormat(scheme: string): WeightFormat {
  const format = Object.hasOwn(formats, scheme) ? formats[scheme] : undefined;
  if (format !== undefined) return format;
  throw new MoeError(
    'MOE_UNSUPPORTED_QUANTIZATION',
    `The core cannot lay out weights of the scheme "${scheme}"; pack them in the plugin that defines it.`,
    {
      scheme,
    },
  );
}

/** The arrays of one matrix, whatever its scheme; those that the scheme does not have are left out. */
export interface MatrixArrays {
  /** [rows, columns] codes of 4, 8 or 16 bits, row-major. */
  readonly codes: Uint8Array;
  /** [rows, columns / 16 or 32] */
  readonly scaleCodes?: Uint8Array;
  /** [rows], or [ceil(rows/128), ceil(columns/128)] */
  readonly scales?: Float32Array;
}

/** The numbers of one matrix, exactly as the checkpoint has them. */
export interface MatrixNumbers {
  readonly globalScale?: number;
  readonly globalScaleIs?: 'factor' | 'divisor';
  readonly scale?: number;
  readonly inputScale?: number | undefined;
}

/** Takes a matrix apart; copies nothing. {@link assembleMatrix} is the inverse. */
export function matrixParts(matrix: SchemeRegistry[SchemeKey]): { readonly arrays: MatrixArrays; readonly numbers: MatrixNumbers } {
  switch (matrix[SCHEME]) {
    case 'nvfp4.w4a4':
    case 'nvfp4.w4a16': {
      const { codes, blockScales, globalScale, globalScaleIs, inputScale } = matrix;
      return { arrays: { codes, scaleCodes: blockScales }, numbers: { globalScale, globalScaleIs, inputScale } };
    }
    case 'mxfp4.w4a16':
      return { arrays: { codes: matrix.codes, scaleCodes: matrix.blockScales }, numbers: {} };
    case 'fp8.tensor.static':
    case 'fp8.tensor.dynamic':
      return { arrays: { codes: matrix.codes }, numbers: { scale: matrix.scale, inputScale: matrix.inputScale } };
    case 'fp8.channel':
      return { arrays: { codes: matrix.codes, scales: matrix.rowScales }, numbers: {} };
    case 'fp8.block128':
      return { arrays: { codes: matrix.codes, scales: matrix.blockScales }, numbers: {} };
    case 'bf16':
    case 'f16': {
      const { buffer, byteOffset, byteLength } = matrix.values;
      return { arrays: { codes: new Uint8Array(buffer, byteOffset, byteLength) }, numbers: {} };
    }
    default:
      return foreign(matrix);
  }
}

/** Puts a matrix of `scheme` together again. The arrays become its own. */
export function assembleMatrix(
  scheme: SchemeKey,
  rows: number,
  columns: number,
  { codes, scaleCodes, scales }: MatrixArrays,
  { globalScale, globalScaleIs, scale, inputScale }: MatrixNumbers,
): SchemeRegistry[SchemeKey] {
  switch (scheme) {
    case 'nvfp4.w4a4':
    case 'nvfp4.w4a16': {
      const blockScales = present(scaleCodes);
      const common = {
        rows,
        columns,
        codes,
        blockScales,
        globalScale: present(globalScale),
        globalScaleIs: present(globalScaleIs),
        inputScale,
      };
      return scheme === 'nvfp4.w4a4' ? { [SCHEME]: scheme, ...common } : { [SCHEME]: scheme, ...common };
    }
    case 'mxfp4.w4a16':
      return { [SCHEME]: scheme, rows, columns, codes, blockScales: present(scaleCodes) };
    case 'fp8.tensor.static':
    case 'fp8.tensor.dynamic': {
      const common = { rows, columns, codes, scale: present(scale), inputScale };
      return scheme === 'fp8.tensor.static' ? { [SCHEME]: scheme, ...common } : { [SCHEME]: scheme, ...common };
    }
    case 'fp8.channel':
      return { [SCHEME]: scheme, rows, columns, codes, rowScales: present(scales) };
    case 'fp8.block128':
      return { [SCHEME]: scheme, rows, columns, codes, blockScales: present(scales) };
    case 'bf16':
    case 'f16': {
      const values = new Uint16Array(codes.buffer, codes.byteOffset, codes.byteLength / 2);
      return scheme === 'bf16' ? { [SCHEME]: scheme, rows, columns, values } : { [SCHEME]: scheme, rows, columns, values };
    }
    default:
      return foreign({ [SCHEME]: scheme });
  }
}

function present<T>(value: T | undefined): T {
  if (value === undefined) throw new TypeError('a matrix lacks a part that its scheme has');
  return value;
}

/** Schemes of plugins are in no case above, though the compiler knows of none. */
function foreign(matrix: { readonly [SCHEME]: unknown }): never {
  weightFormat(String(matrix[SCHEME]));
  throw new TypeError(`the scheme ${String(matrix[SCHEME])} has a format and no parts`);
}
