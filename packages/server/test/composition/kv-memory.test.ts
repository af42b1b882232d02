import { expect } from 'chai';
import { sizeKvCache } from '../../src/composition/kv-memory.js';
import type { KvMemoryRequest } from '../../src/composition/kv-memory.js';

const shape = { dtype: 'bf16', numLayers: 2, numKvHeads: 1, headDim: 16, blockSize: 16 } as const;
/** 2 (keys, values) × 2 layers × 16 × 16 positions × 2 bytes. */
const bytesPerBlock = 2048;

const size = (request: Partial<KvMemoryRequest>): ReturnType<typeof sizeKvCache> =>
  sizeKvCache({
    shape,
    maxNumSeqs: 4,
    maxModelLen: undefined,
    maxContextLength: 160,
    askedBytes: undefined,
    availableBytes: 1e9,
    weightBytes: 1000,
    ...request,
  });

describe('sizeKvCache', () => {
  it('makes room for all sequences at full length when memory allows', () => {
    expect(size({})).to.deep.equal({ maxModelLen: 160, numBlocks: 40 });
  });

  it('takes no more than a part of what the weights leave', () => {
    expect(size({ availableBytes: 1000 + (20 * bytesPerBlock) / 0.6 }).numBlocks).to.equal(20);
  });

  it('uses all of the memory that was asked for', () => {
    expect(size({ askedBytes: 100 * bytesPerBlock }).numBlocks).to.equal(100);
  });

  it('shrinks a context that nobody asked for to what fits', () => {
    expect(size({ askedBytes: 5 * bytesPerBlock })).to.deep.equal({ maxModelLen: 80, numBlocks: 5 });
  });

  it('refuses a context that was asked for and does not fit', () => {
    expect(() => size({ maxModelLen: 160, askedBytes: 5 * bytesPerBlock }))
      .to.throw()
      .with.property('code', 'MOE_CAPACITY_MEMORY');
  });

  it('refuses a cache that does not fit beside the weights, with the sum', () => {
    expect(() => size({ askedBytes: 1e9 }))
      .to.throw(/make .*are free/)
      .with.property('code', 'MOE_CAPACITY_MEMORY');
  });

  it("refuses a context beyond the model's", () => {
    expect(() => size({ maxModelLen: 161 }))
      .to.throw(/161 is more than the 160/)
      .with.property('code', 'MOE_USAGE');
  });
});
