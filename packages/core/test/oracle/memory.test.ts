import { expect } from 'chai';
import fc from 'fast-check';
import { fitIntoMemory, sumBytes, type MemoryChoice } from '../../src/oracle/memory.js';

const option = fc
  .record({
    residentBytes: fc.integer({ min: 0, max: 50 }),
    preparePeakBytes: fc.integer({ min: 0, max: 80 }),
    workspaceBytes: fc.integer({ min: 0, max: 80 }),
  })
  .chain((bytes) => fc.boolean().map((isWished) => ({ bytes, isWished })));
const choice: fc.Arbitrary<MemoryChoice> = fc.record({
  options: fc.array(option, { maxLength: 3 }),
  numLayers: fc.integer({ min: 1, max: 3 }),
});
const choices = fc.array(choice, { minLength: 1, maxLength: 5 });

function required(all: readonly MemoryChoice[], chosen: readonly number[]): number {
  const layers = all.flatMap(({ options, numLayers }, index) => {
    const bytes = options[chosen[index] ?? -1]?.bytes;
    return bytes === undefined ? [] : [{ bytes, numLayers }];
  });
  return sumBytes(layers, undefined).requiredBytes;
}

/** Every assignment, by counting. */
function* assignments(all: readonly MemoryChoice[]): Generator<readonly number[]> {
  const [first, ...rest] = all;
  if (first === undefined) {
    yield [];
    return;
  }
  for (const tail of assignments(rest)) {
    if (first.options.length === 0) yield [-1, ...tail];
    for (const index of first.options.keys()) yield [index, ...tail];
  }
}

describe('fitIntoMemory', () => {
  it('takes the first of each where that fits, and where nothing is known of the memory', () => {
    fc.assert(
      fc.property(choices, (all) => {
        const best = all.map(({ options }) => (options.length > 0 ? 0 : -1));
        expect(fitIntoMemory(all, undefined)).to.deep.equal(best);
        expect(fitIntoMemory(all, required(all, best))).to.deep.equal(best);
      }),
      { numRuns: 200, seed: 1 },
    );
  });

  it('fits whenever some assignment does, and is the cheapest of all when none does', () => {
    fc.assert(
      fc.property(choices, fc.integer({ min: 0, max: 400 }), (all, availableBytes) => {
        const least = Math.min(...[...assignments(all)].map((one) => required(all, one)));
        const taken = required(all, fitIntoMemory(all, availableBytes));
        if (least <= availableBytes) expect(taken).to.be.at.most(availableBytes);
        else expect(taken).to.equal(least);
      }),
      { numRuns: 400, seed: 2 },
    );
  });

  it('moves what nobody wished for first', () => {
    const bytes = (residentBytes: number) => ({ residentBytes, preparePeakBytes: 0, workspaceBytes: 0 });
    const two = (isWished: boolean): MemoryChoice => ({
      numLayers: 1,
      options: [
        { bytes: bytes(10), isWished },
        { bytes: bytes(4), isWished: false },
      ],
    });
    expect(fitIntoMemory([two(true), two(false)], 15)).to.deep.equal([0, 1]);
    expect(fitIntoMemory([two(true), two(false)], 13)).to.deep.equal([1, 1]);
  });
});
