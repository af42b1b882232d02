/**
 * The order in which block-scaled matrix instructions of SM 10.x and 12.x want the scales of FP4 weights: atoms of 128 rows by 4 scales, 512 bytes
 * each, one atom row after the other; inside an atom the four 32-row quarters of a row's scales stand side by side, so that one 16-byte load
 * brings a thread the scales of rows r, r + 32, r + 64 and r + 96. Rows are padded to 128 and columns to 4, with zeros.
 *
 * Source: PTX ISA, "Block scaling for mma"; CUTLASS documentation, "Scale factor layouts" of the Blackwell functionality page.
 */

const atomRows = 128;
const atomColumns = 4;
const atomBytes = atomRows * atomColumns;

/** Rows of a matrix inside a stack of several: row i of the matrix is row `first + i * step` of the stack. */
export interface RowPlacement {
  readonly first: number;
  readonly step: number;
}

/** Bytes of the swizzled scales of [rows, columns], padding included; one byte per scale. */
export function swizzledScalesBytes(rows: number, columns: number): number {
  return Math.ceil(rows / atomRows) * Math.ceil(columns / atomColumns) * atomBytes;
}

/** Where the scale of a row and a column of scales stands. @param columns - scales per row. */
export function swizzledScaleOffset(row: number, column: number, columns: number): number {
  const atom = Math.floor(row / atomRows) * Math.ceil(columns / atomColumns) + Math.floor(column / atomColumns);
  return atom * atomBytes + (row % 32) * 16 + Math.floor((row % atomRows) / 32) * atomColumns + (column % atomColumns);
}

/**
 * Puts the scales of one matrix into the swizzled scales of its stack.
 *
 * @param target - swizzled scales of the whole stack, see {@link swizzledScalesBytes}.
 * @param scales - [rows, columns] bytes, row-major.
 */
export function swizzleScales(target: Uint8Array, scales: Uint8Array, columns: number, { first, step }: RowPlacement): void {
  const rows = scales.length / columns;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      target[swizzledScaleOffset(first + row * step, column, columns)] = scales[row * columns + column]!;
    }
  }
}

/** The inverse of {@link swizzleScales}. @returns [rows, columns] bytes, row-major, in a new array. */
export function unswizzleScales(source: Uint8Array, rows: number, columns: number, { first, step }: RowPlacement): Uint8Array {
  const scales = new Uint8Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      scales[row * columns + column] = source[swizzledScaleOffset(first + row * step, column, columns)]!;
    }
  }
  return scales;
}
