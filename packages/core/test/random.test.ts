import { expect } from 'chai';
import { Random } from '../src/conformance/index.js';

describe('Random', () => {
  it('gives the same numbers for the same seed, others for another', () => {
    const numbers = (seed: number): number[] => {
      const random = new Random(seed);
      return Array.from({ length: 8 }, () => random.uint32());
    };
    expect(numbers(3)).to.deep.equal(numbers(3));
    expect(numbers(3)).not.to.deep.equal(numbers(4));
  });

  it('fills bytes with the words that it would give one by one', () => {
    const bytes = new Uint8Array(23);
    const filler = new Random(9);
    filler.fillBytes(bytes);
    const words = new Random(9);
    const view = new DataView(bytes.buffer);
    for (let i = 0; i < 5; i++) expect(view.getUint32(4 * i, true)).to.equal(words.uint32());
    expect(bytes[20]).to.equal(words.uint32() & 255);
  });

  it('spreads bytes evenly', () => {
    const bytes = new Uint8Array(2 ** 18);
    new Random(1).fillBytes(bytes);
    const counts = new Uint32Array(256);
    for (const byte of bytes) counts[byte] = (counts[byte] ?? 0) + 1;
    // 1024 expected of each; six standard deviations are 192.
    expect(Math.min(...counts)).to.be.greaterThan(832);
    expect(Math.max(...counts)).to.be.lessThan(1216);
  });

  it('draws normal numbers with mean 0 and variance 1', () => {
    const random = new Random(2);
    const values = Array.from({ length: 20_000 }, () => random.normal());
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const variance = values.reduce((sum, value) => sum + value ** 2, 0) / values.length;
    expect(mean).to.be.within(-0.03, 0.03);
    expect(variance).to.be.within(0.95, 1.05);
  });

  it('forks into generators that do not depend on what was drawn before', () => {
    const a = new Random(5);
    const b = new Random(5);
    b.uint32();
    expect(a.fork(2).uint32()).to.equal(b.fork(2).uint32());
    expect(a.fork(2).uint32()).not.to.equal(a.fork(3).uint32());
  });
});
