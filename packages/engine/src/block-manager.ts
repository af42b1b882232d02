import { hash as digest } from 'node:crypto';

/**
 * Identity of everything a sequence holds from position 0 to the end of one full block: its tokens and, through `parent`, all before
 * them. Immutable. The hash finds candidates; contents decide, so a collision costs a missed reuse, never a wrong text.
 */
export interface PrefixNode {
  readonly parent: PrefixNode | undefined;
  /** Exactly blockSize token ids. */
  readonly tokenIds: readonly number[];
  /** Hash of the parent's hash and the tokens. */
  readonly hash: string;
}

/** Maps the parent's hash ('' at position 0) and one block of tokens to a key. */
export type BlockHash = (parentHash: string, tokenIds: readonly number[]) => string;

/** SHA-256 of the parent's digest and the ids as little-endian int32. */
export const sha256BlockHash: BlockHash = (parentHash, tokenIds) => {
  const bytes = Buffer.allocUnsafe(parentHash.length + 4 * tokenIds.length);
  let offset = bytes.write(parentHash, 'latin1');
  for (const tokenId of tokenIds) offset = bytes.writeInt32LE(tokenId, offset);
  return digest('sha256', bytes, 'binary');
};

export interface BlockManagerOptions {
  readonly numBlocks: number;
  /** Token positions of one block. */
  readonly blockSize: number;
  /** Keep full blocks after they were freed and hand them to sequences that begin alike. Default true. */
  readonly enablePrefixCaching?: boolean;
  readonly hash?: BlockHash;
}

/**
 * Owner of the KV cache's blocks: who uses which, which are free, which still hold a prefix that may come again.
 *
 * A block is free when nobody refers to it. A free block that is still cached keeps its contents until it is the least recently freed
 * one and nothing without contents is left. Sequences give blocks back last one first, so a prefix outlives its continuations.
 */
export class BlockManager {
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly #enablePrefixCaching: boolean;
  readonly #hash: BlockHash;
  readonly #refCounts: Int32Array;
  /** The free list: doubly linked through these, index numBlocks is its anchor. Taken from the front. */
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  /** What a block holds, once it is full and computed. */
  readonly #contents: (PrefixNode | undefined)[];
  readonly #cached = new Map<string, number>();
  #numFree: number;

  constructor({ numBlocks, blockSize, enablePrefixCaching = true, hash = sha256BlockHash }: BlockManagerOptions) {
    this.numBlocks = numBlocks;
    this.blockSize = blockSize;
    this.#enablePrefixCaching = enablePrefixCaching;
    this.#hash = hash;
    this.#refCounts = new Int32Array(numBlocks);
    this.#next = Int32Array.from({ length: numBlocks + 1 }, (_, i) => (i + 1) % (numBlocks + 1));
    this.#previous = Int32Array.from({ length: numBlocks + 1 }, (_, i) => (i + numBlocks) % (numBlocks + 1));
    // The anchor's successor is block 0; with the two lines above the ring is numBlocks, 0, 1, …, numBlocks - 1.
    this.#contents = new Array<PrefixNode | undefined>(numBlocks).fill(undefined);
    this.#numFree = numBlocks;
  }

  get numFreeBlocks(): number {
    return this.#numFree;
  }

  /** Blocks whose contents can be found, in use or not. */
  get numCachedBlocks(): number {
    return this.#cached.size;
  }

  /** Part of the blocks that is in use, 0 to 1. */
  get usage(): number {
    return 1 - this.#numFree / this.numBlocks;
  }

  /** Blocks that so many positions fill, the last one perhaps in part. */
  blocksFor(numTokens: number): number {
    return Math.ceil(numTokens / this.blockSize);
  }

  refCount(block: number): number {
    return this.#refCounts[block] ?? 0;
  }

  /** Extends `prefix` by the full blocks of `tokenIds` that it does not describe yet. */
  extendPrefix(prefix: PrefixNode[], tokenIds: readonly number[]): void {
    if (!this.#enablePrefixCaching) return;
    const { blockSize } = this;
    for (let begin = prefix.length * blockSize; begin + blockSize <= tokenIds.length; begin += blockSize) {
      const parent = prefix.at(-1);
      const block = tokenIds.slice(begin, begin + blockSize);
      prefix.push({ parent, tokenIds: block, hash: this.#hash(parent?.hash ?? '', block) });
    }
  }

  /** The blocks that already hold the beginning of `prefix`, at most `maxBlocks` of them. Takes nothing. */
  findPrefix(prefix: readonly PrefixNode[], maxBlocks: number): number[] {
    const found: number[] = [];
    let previous: PrefixNode | undefined;
    for (const node of prefix) {
      if (found.length >= maxBlocks) break;
      const block = this.#cached.get(node.hash);
      if (block === undefined) break;
      const contents = this.#contents[block];
      if (contents === undefined || !isSameBlock(contents, node)) break;
      // What lies before was compared in the turn before, unless this block was computed behind another copy of it.
      if (contents.parent !== previous && !isSamePrefix(contents.parent, node.parent)) break;
      found.push(block);
      previous = contents;
    }
    return found;
  }

  /**
   * Fills an empty block table with the blocks of {@link findPrefix} and as many fresh ones as make `numBlocks`.
   *
   * @param reserve - free blocks that must be left afterwards.
   * @returns false, with nothing changed, when there are not enough.
   */
  allocate(blockTable: number[], cached: readonly number[], numBlocks: number, reserve = 0): boolean {
    let needed = numBlocks - cached.length;
    for (const block of cached) if (this.#refCounts[block] === 0) needed++;
    if (needed + reserve > this.#numFree) return false;
    for (const block of cached) {
      if (this.#refCounts[block] === 0) this.#unlink(block);
      this.#refCounts[block] = this.refCount(block) + 1;
      blockTable.push(block);
    }
    return this.grow(blockTable, numBlocks);
  }

  /** Appends fresh blocks until the table has `numBlocks`; false, with nothing changed, when there are not enough. */
  grow(blockTable: number[], numBlocks: number): boolean {
    const missing = numBlocks - blockTable.length;
    if (missing > this.#numFree) return false;
    for (let i = 0; i < missing; i++) blockTable.push(this.#takeFree());
    return true;
  }

  /** Gives all blocks of a table back and empties it. Cached contents stay findable until their block is needed. */
  free(blockTable: number[]): void {
    for (let block = blockTable.pop(); block !== undefined; block = blockTable.pop()) {
      const refCount = this.refCount(block) - 1;
      if (refCount < 0) throw new RangeError(`block ${String(block)} is freed more often than it was taken`);
      this.#refCounts[block] = refCount;
      if (refCount === 0) this.#link(block);
    }
  }

  /** Makes a full and computed block findable. Where an equal one is known already, that one stays. */
  cache(block: number, node: PrefixNode): void {
    if (this.#cached.has(node.hash)) return;
    this.#cached.set(node.hash, block);
    this.#contents[block] = node;
  }

  #takeFree(): number {
    const block = this.#next[this.numBlocks] ?? 0;
    this.#unlink(block);
    this.#refCounts[block] = 1;
    const contents = this.#contents[block];
    if (contents !== undefined) {
      this.#cached.delete(contents.hash);
      this.#contents[block] = undefined;
    }
    return block;
  }

  #unlink(block: number): void {
    const next = this.#next[block] ?? 0;
    const previous = this.#previous[block] ?? 0;
    this.#next[previous] = next;
    this.#previous[next] = previous;
    this.#numFree--;
  }

  /** Blocks without contents go to the front, cached ones to the end. */
  #link(block: number): void {
    const anchor = this.numBlocks;
    const previous = this.#contents[block] === undefined ? anchor : (this.#previous[anchor] ?? anchor);
    const next = this.#next[previous] ?? anchor;
    this.#next[previous] = block;
    this.#previous[block] = previous;
    this.#next[block] = next;
    this.#previous[next] = block;
    this.#numFree++;
  }
}

function isSameBlock(a: PrefixNode, b: PrefixNode): boolean {
  return a.tokenIds.length === b.tokenIds.length && a.tokenIds.every((tokenId, i) => tokenId === b.tokenIds[i]);
}

/** Compares contents from the end; ends early where both share their history. */
function isSamePrefix(a: PrefixNode | undefined, b: PrefixNode | undefined): boolean {
  while (a !== b) {
    if (a === undefined || b === undefined || !isSameBlock(a, b)) return false;
    a = a.parent;
    b = b.parent;
  }
  return true;
}
