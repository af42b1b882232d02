import { expect } from 'chai';
import { blockHash } from '../../src/packed-cache/block-hash.js';
import { Random } from '../../src/random.js';

describe('blockHash', () => {
  const random = new Random(1);
  const bytes = Uint8Array.from({ length: 103 }, () => random.int(256));

  it('changes with any bit, and with the length', () => {
    const hashes = new Set<number>();
    for (let bit = 0; bit < 8 * bytes.length; bit++) {
      const changed = bytes.slice();
      changed[bit >> 3]! ^= 1 << (bit & 7);
      hashes.add(blockHash(changed));
    }
    for (let length = 0; length <= bytes.length; length++) hashes.add(blockHash(bytes.slice(0, length)));
    expect(hashes.size).to.equal(9 * bytes.length + 1);
  });

  it('changes when words trade places, and when zeros are added', () => {
    const words = Int32Array.of(1, 2, 3, 4, 5, 6, 7, 8);
    const swapped = Int32Array.of(5, 2, 3, 4, 1, 6, 7, 8);
    const lanes = Int32Array.of(2, 1, 3, 4, 5, 6, 7, 8);
    const hashes = [words, swapped, lanes, new Int32Array(8), new Int32Array(12)].map(({ buffer }) => blockHash(new Uint8Array(buffer)));
    expect(new Set(hashes).size).to.equal(hashes.length);
  });

  it('does not depend on where in its buffer the block lies', () => {
    const moved = new Uint8Array(new ArrayBuffer(200), 8, bytes.length);
    moved.set(bytes);
    expect(blockHash(moved)).to.equal(blockHash(bytes));
  });
});
