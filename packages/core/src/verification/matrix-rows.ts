import { assembleMatrix, matrixParts, weightFormat } from '../layout/matrix-parts.js';
import { SCHEME, type SchemeKey, type SchemeRegistry } from '../quant/quant-scheme.js';

/** Whether the core can take matrices of the scheme apart and decode them; false for schemes that only a plugin knows. */
export function isKnownFormat(scheme: string): boolean {
  try {
    weightFormat(scheme);
    return true;
  } catch {
    return false;
  }
}

const blockRows = 128;

/**
 * Rows `first` to `first + numRows` of a matrix, copied, in the same scheme. Of a scheme with 128x128 blocks the rows must lie in one block row, or be
 * all rows.
 */
export function copyRows(matrix: SchemeRegistry[SchemeKey], first: number, numRows: number): SchemeRegistry[SchemeKey] {
  const { rows, columns } = matrix;
  const scheme = matrix[SCHEME];
  const { arrays, numbers } = matrixParts(matrix);
  const { codes, scaleCodes, scales } = arrays;
  const cut = (bytes: Uint8Array): Uint8Array => {
    const rowBytes = bytes.length / rows;
    return bytes.slice(first * rowBytes, (first + numRows) * rowBytes);
  };
  const cutScales = (all: Float32Array): Float32Array => {
    if (weightFormat(scheme).scales === 'row') return all.slice(first, first + numRows);
    const perBlockRow = all.length / Math.ceil(rows / blockRows);
    const firstBlock = Math.floor(first / blockRows);
    return all.slice(firstBlock * perBlockRow, Math.ceil((first + numRows) / blockRows) * perBlockRow);
  };
  const copied = {
    codes: cut(codes),
    ...(scaleCodes === undefined ? {} : { scaleCodes: cut(scaleCodes) }),
    ...(scales === undefined ? {} : { scales: cutScales(scales) }),
  };
  return assembleMatrix(scheme, numRows, columns, copied, numbers);
}

/** The first and the last few rows of a matrix, each within one block row: [first row, number of rows]. */
export function edgeRows(rows: number, count: number): readonly (readonly [number, number])[] {
  const head = Math.min(count, rows);
  const tail = Math.max(head, rows - count, Math.floor((rows - 1) / blockRows) * blockRows);
  return tail < rows
    ? [
        [0, head],
        [tail, rows - tail],
      ]
    : [[0, head]];
}
