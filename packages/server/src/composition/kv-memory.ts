import { formatBytes, MoeError } from '@moe-server/core';
import { kvBytesPerBlock, numKvBlocksFor } from '@moe-server/engine';
import type { KvCacheShape } from '@moe-server/engine';

export interface KvMemoryRequest {
  readonly shape: KvCacheShape;
  readonly maxNumSeqs: number;
  /** What was asked for; undefined = as much as the model and the memory allow. */
  readonly maxModelLen: number | undefined;
  /** What the model was trained for. */
  readonly maxContextLength: number;
  readonly askedBytes: number | undefined;
  /** Of the device, before the weights; undefined = not known. */
  readonly availableBytes: number | undefined;
  /** Of packed weights and what preparing them takes. */
  readonly weightBytes: number;
}

export interface KvMemory {
  readonly maxModelLen: number;
  readonly numBlocks: number;
}

/** Part of the memory beside the weights that the cache takes by itself: activations, the embedding and the rest of the machine need some, too. */
const shareOfFree = 0.6;
/** What an unknown device is trusted with. */
const unknownFreeBytes = 2 ** 30;

/**
 * Decides how large the KV cache is, before a weight is read. By default: room for `maxNumSeqs` sequences of full length, at most 60 % of
 * what the weights leave free; a context that was not asked for shrinks to what fits.
 *
 * @throws {MoeError} MOE_USAGE for a context beyond the model's; MOE_CAPACITY_MEMORY with the sum for what does not fit.
 */
export function sizeKvCache(request: KvMemoryRequest): KvMemory {
  const { shape, maxNumSeqs, maxContextLength, askedBytes, availableBytes, weightBytes } = request;
  if (request.maxModelLen !== undefined && request.maxModelLen > maxContextLength) {
    const message = `--max-model-len ${String(request.maxModelLen)} is more than the ${String(maxContextLength)} positions this model was trained for`;
    throw new MoeError('MOE_USAGE', message, { maxModelLen: request.maxModelLen, maxContextLength });
  }
  const wished = request.maxModelLen ?? maxContextLength;
  const bytesPerBlock = kvBytesPerBlock(shape);
  const blocksPerSequence = Math.ceil(wished / shape.blockSize);
  const free = availableBytes === undefined ? undefined : availableBytes - weightBytes;
  if (askedBytes !== undefined && free !== undefined && askedBytes > free) {
    const message =
      `The KV cache does not fit: ${formatBytes(weightBytes)} for the weights and ${formatBytes(askedBytes)} for keys and values make ` +
      `${formatBytes(weightBytes + askedBytes)}; ${formatBytes(availableBytes ?? 0)} are free. Lower --kv-cache-memory-bytes.`;
    throw new MoeError('MOE_CAPACITY_MEMORY', message, { askedBytes, weightBytes, availableBytes });
  }
  const budget = askedBytes ?? Math.max(0, Math.floor((free ?? unknownFreeBytes / shareOfFree) * shareOfFree));
  const useful = askedBytes === undefined ? maxNumSeqs * blocksPerSequence : Number.POSITIVE_INFINITY;
  const affordable = Math.floor(budget / bytesPerBlock);
  if (request.maxModelLen === undefined && affordable < blocksPerSequence && affordable > 0) {
    return { maxModelLen: affordable * shape.blockSize, numBlocks: affordable };
  }
  return { maxModelLen: wished, numBlocks: Math.min(useful, numKvBlocksFor(budget, shape, wished)) };
}
