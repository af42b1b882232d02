import { MoeError } from '@moe-server/core';
import type { KvCacheDType } from '@moe-server/core';
import type { KvCacheLayer } from './device/commands.js';
import type { Device } from './device/device.js';

/** Token positions per block. */
export const kvBlockSize = 16;

/** Shape of a cache; every layer is alike. */
export interface KvCacheShape {
  readonly dtype: KvCacheDType;
  readonly numLayers: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly blockSize: number;
}

/** Scales of one layer's keys and values, as factors. */
export interface KvScales {
  readonly keyScale: number;
  readonly valueScale: number;
}

/** Keys and values of all layers for one block of positions. */
export function kvBytesPerBlock({ dtype, numLayers, numKvHeads, headDim, blockSize }: KvCacheShape): number {
  return 2 * numLayers * numKvHeads * headDim * blockSize * bytesPerElement[dtype];
}

const bytesPerElement: Readonly<Record<KvCacheDType, number>> = { bf16: 2, f8e4m3: 1 };

/**
 * How many blocks fit into a budget.
 *
 * @param minPositions - what one sequence must be able to hold, the maximum model length.
 * @throws {MoeError} MOE_CAPACITY_MEMORY with the sum when that does not fit.
 */
export function numKvBlocksFor(budgetBytes: number, shape: KvCacheShape, minPositions: number): number {
  const bytesPerBlock = kvBytesPerBlock(shape);
  const numBlocks = Math.floor(budgetBytes / bytesPerBlock);
  const minBlocks = Math.ceil(minPositions / shape.blockSize);
  if (numBlocks >= minBlocks) return numBlocks;
  const { numLayers, numKvHeads, headDim, blockSize, dtype } = shape;
  const requiredBytes = minBlocks * bytesPerBlock;
  throw new MoeError(
    'MOE_CAPACITY_MEMORY',
    `One sequence of ${String(minPositions)} tokens needs ${String(minBlocks)} KV blocks of ${String(bytesPerBlock)} bytes ` +
      `(2 x ${String(numLayers)} layers x ${String(numKvHeads)} heads x ${String(headDim)} x ${String(blockSize)} positions x ` +
      `${String(bytesPerElement[dtype])} bytes of ${dtype}), ${String(requiredBytes)} bytes in all, but there are ${String(budgetBytes)}. ` +
      'Lower the maximum model length, raise the memory of the KV cache, or store it in fp8.',
    { budgetBytes, requiredBytes, bytesPerBlock, minBlocks, ...shape },
  );
}

/** The device memory behind the blocks. Which sequence has which block is the block manager's. */
export class KvCache {
  readonly shape: KvCacheShape;
  readonly numBlocks: number;
  readonly layers: readonly KvCacheLayer[];

  private constructor(shape: KvCacheShape, numBlocks: number, layers: readonly KvCacheLayer[]) {
    this.shape = shape;
    this.numBlocks = numBlocks;
    this.layers = layers;
  }

  /**
   * @param scales - one entry per layer; used by FP8 caches only.
   * @throws {MoeError} MOE_DEVICE_MEMORY when the device has not that much.
   */
  static allocate(device: Pick<Device, 'allocate'>, shape: KvCacheShape, numBlocks: number, scales: readonly KvScales[]): KvCache {
    const { dtype, numLayers, numKvHeads, headDim, blockSize } = shape;
    const byteLength = (numBlocks * kvBytesPerBlock(shape)) / (2 * numLayers);
    const layers = Array.from({ length: numLayers }, (_, layer): KvCacheLayer => {
      const { keyScale, valueScale } = dtype === 'f8e4m3' ? (scales[layer] ?? noScales) : noScales;
      return {
        dtype,
        keys: device.allocate(byteLength, `keys of layer ${String(layer)}`),
        values: device.allocate(byteLength, `values of layer ${String(layer)}`),
        numBlocks,
        blockSize,
        numKvHeads,
        headDim,
        keyScale,
        valueScale,
      };
    });
    return new KvCache(shape, numBlocks, layers);
  }

  get byteLength(): number {
    return this.numBlocks * kvBytesPerBlock(this.shape);
  }
}

const noScales: KvScales = { keyScale: 1, valueScale: 1 };
