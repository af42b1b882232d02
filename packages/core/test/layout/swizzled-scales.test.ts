import { expect } from 'chai';
import { swizzledScaleOffset, swizzledScalesBytes, swizzleScales, unswizzleScales } from '../../src/layout/swizzled-scales.js';

describe('swizzledScaleOffset', () => {
  it('lays an atom out as four quarters of 32 rows side by side', () => {
    // [row, column, offset] in a matrix of 8 scales per row, worked by hand.
    const table: readonly (readonly [number, number, number])[] = [
      [0, 0, 0],
      [0, 3, 3],
      [1, 0, 16],
      [31, 2, 498],
      [32, 0, 4],
      [64, 1, 9],
      [127, 3, 511],
      // The next atom to the right, then the next one down: two atoms per 128 rows.
      [0, 4, 512],
      [128, 0, 1024],
      [129, 5, 1024 + 512 + 16 + 1],
    ];
    for (const [row, column, offset] of table) expect(swizzledScaleOffset(row, column, 8), `${row}, ${column}`).to.equal(offset);
  });

  it('gives every scale of a padded matrix a place of its own', () => {
    const bytes = swizzledScalesBytes(256, 12);
    const seen = new Set<number>();
    for (let row = 0; row < 256; row++) for (let column = 0; column < 12; column++) seen.add(swizzledScaleOffset(row, column, 12));
    expect(seen.size).to.equal(256 * 12);
    expect(Math.max(...seen)).to.equal(bytes - 1);
  });
});

describe('swizzledScalesBytes', () => {
  it('pads rows to 128 and columns to 4', () => {
    expect(swizzledScalesBytes(128, 4)).to.equal(512);
    expect(swizzledScalesBytes(129, 5)).to.equal(4 * 512);
    expect(swizzledScalesBytes(16, 1)).to.equal(512);
    expect(swizzledScalesBytes(128, 0)).to.equal(0);
  });
});

describe('swizzleScales', () => {
  it('is undone by unswizzleScales, for matrices that share a stack', () => {
    for (const [rows, columns] of [
      [3, 1],
      [40, 6],
      [130, 9],
    ] as const) {
      const matrices = [0, 1].map((part) => Uint8Array.from({ length: rows * columns }, (_, i) => (i * 7 + part * 101 + 1) % 251));
      for (const placements of [
        [
          { first: 0, step: 2 },
          { first: 1, step: 2 },
        ],
        [
          { first: 0, step: 1 },
          { first: rows, step: 1 },
        ],
      ]) {
        const target = new Uint8Array(swizzledScalesBytes(2 * rows, columns));
        matrices.forEach((matrix, part) => {
          swizzleScales(target, matrix, columns, placements[part]!);
        });
        matrices.forEach((matrix, part) => {
          expect(unswizzleScales(target, rows, columns, placements[part]!)).to.deep.equal(matrix);
        });
      }
    }
  });
});
