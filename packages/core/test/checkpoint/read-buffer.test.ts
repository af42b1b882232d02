import { expect } from 'chai';
import { ReadBuffer } from '../../src/checkpoint/read-buffer.js';

describe('ReadBuffer', () => {
  it('gives memory of its own for what does not fit, and the same memory from the next time on', () => {
    const memory = new ReadBuffer();
    const first = [memory.take(100), memory.take(28)];
    expect(first.map(({ length }) => length)).to.deep.equal([100, 28]);
    expect(memory.byteLength).to.equal(0);
    memory.clear();
    expect(memory.byteLength).to.equal(128 + 28);
    const second = [memory.take(100), memory.take(28)];
    expect(second[0]?.buffer).to.equal(second[1]?.buffer);
    memory.clear();
    expect(memory.take(50).buffer).to.equal(second[0]?.buffer);
  });

  it('never hands out bytes twice before it is cleared', () => {
    const memory = new ReadBuffer();
    for (let round = 0; round < 3; round++) {
      memory.clear();
      const parts = [7, 64, 1, 0, 65].map((length, i) => memory.take(length, 3 * i).fill(i + 1));
      parts.forEach((part, i) => {
        expect(part.every((byte) => byte === i + 1)).to.equal(true);
      });
    }
  });

  it('places bytes as far from a cache line as they are asked to be', () => {
    const memory = new ReadBuffer();
    for (let round = 0; round < 2; round++) {
      memory.clear();
      for (const phase of [0, 5, 64, 100]) expect(memory.take(10, phase).byteOffset % 64).to.equal(phase % 64);
    }
  });
});
