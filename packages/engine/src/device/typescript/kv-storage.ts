import { decodeBf16, e4m3Values, encodeBf16, encodeE4m3 } from '@moe-server/core';
import type { KvCacheLayer } from '../commands.js';
import { bytesOfRef, halvesOf } from './operator.js';

/** Elements of a cache, in the type that it stores. */
export interface KvStorage {
  readonly write: (element: number, value: number) => void;
  readonly read: (element: number) => number;
}

/** Keys or values of one layer. */
export function openKvStorage(cache: KvCacheLayer, which: 'keys' | 'values'): KvStorage {
  const length = cache.numBlocks * cache.numKvHeads * cache.blockSize * cache.headDim;
  const what = `The cache's ${which}`;
  if (cache.dtype === 'bf16') {
    const patterns = halvesOf(cache[which], length, what);
    return {
      write: (element, value) => {
        patterns[element] = encodeBf16(value);
      },
      read: (element) => decodeBf16(patterns[element]!),
    };
  }
  const scale = Math.fround(which === 'keys' ? cache.keyScale : cache.valueScale);
  const codes = bytesOfRef(cache[which], length, what);
  const decoded = e4m3Values.map((value) => value * scale);
  return {
    write: (element, value) => {
      codes[element] = encodeE4m3(Math.fround(value / scale));
    },
    read: (element) => decoded[codes[element]!]!,
  };
}
