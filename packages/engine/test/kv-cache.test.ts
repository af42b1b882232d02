import { isMoeError } from '@moe-server/core';
import { expect } from 'chai';
import { createTypescriptDevice } from '../src/device/typescript-device.js';
import type { KvCacheShape } from '../src/kv-cache.js';
import { KvCache, kvBytesPerBlock, numKvBlocksFor } from '../src/kv-cache.js';

const shape: KvCacheShape = { dtype: 'bf16', numLayers: 3, numKvHeads: 2, headDim: 64, blockSize: 16 };

describe('kvBytesPerBlock', () => {
  it('counts keys and values of all layers', () => {
    expect(kvBytesPerBlock(shape)).to.equal(2 * 3 * 2 * 64 * 16 * 2);
    expect(kvBytesPerBlock({ ...shape, dtype: 'f8e4m3' })).to.equal(2 * 3 * 2 * 64 * 16);
  });
});

describe('numKvBlocksFor', () => {
  it('fills the budget with whole blocks', () => {
    expect(numKvBlocksFor(10 * 24_576 + 1, shape, 160)).to.equal(10);
  });

  it('refuses a budget that cannot hold one sequence, with the sum', () => {
    try {
      numKvBlocksFor(9 * 24_576, shape, 150);
      expect.fail('accepted');
    } catch (error) {
      expect(isMoeError(error) && (error as { code: string }).code).to.equal('MOE_CAPACITY_MEMORY');
      expect(String(error)).to.contain('10 KV blocks of 24576 bytes').and.to.contain('245760 bytes in all').and.to.contain('221184');
    }
  });
});

describe('KvCache.allocate', () => {
  it('allocates every layer and keeps scales for FP8 alone', () => {
    const scales = [0.5, 0.25, 0.125].map((keyScale) => ({ keyScale, valueScale: 2 * keyScale }));
    const device = createTypescriptDevice();
    const fp8 = KvCache.allocate(device, { ...shape, dtype: 'f8e4m3' }, 5, scales);
    expect(fp8.layers).to.have.lengthOf(3);
    expect(fp8.layers[1]).to.include({ keyScale: 0.25, valueScale: 0.5, numBlocks: 5 });
    expect(fp8.layers.reduce((sum, { keys, values }) => sum + keys.byteLength + values.byteLength, 0)).to.equal(fp8.byteLength);
    expect(KvCache.allocate(device, shape, 5, scales).layers[1]).to.include({ keyScale: 1, valueScale: 1 });
  });
});
