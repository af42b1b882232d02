import { MoeError } from '@moe-server/core';
import type { Batch } from './batch.js';
import type { BlockManager } from './block-manager.js';
import type { EngineConfig } from './engine-config.js';
import type { Sequence } from './sequence.js';

/** One turn of the loop: a batch, and the sequence behind each of its entries. */
export interface ScheduledStep {
  readonly batch: Batch;
  readonly sequences: readonly Sequence[];
}

/** A sequence that can never run, and why. */
export interface RefusedSequence {
  readonly sequence: Sequence;
  readonly error: MoeError;
}

/** Counted since the start. */
export interface SchedulerCounters {
  numPreemptions: number;
  /** Prompt tokens that were looked up in the prefix cache, and those found. */
  prefixCacheQueries: number;
  prefixCacheHits: number;
}

/** Free blocks that admission leaves for the growth of what already runs, as a part of all blocks. */
const reservedPart = 0.01;

/**
 * Decides what runs in the next step. First come, first served, in this order: every sequence that decodes (one token each), then chunks of prompts
 * that have begun, then waiting sequences, until tokens, logit rows, adjustments or blocks run out.
 *
 * A sequence gets the blocks of all its known tokens when it is admitted, so only decoding asks for more. When none are left the youngest running
 * sequence gives its blocks back and waits, in front of everyone who has not run yet; what it generated stays, and so do its seed and counters: once its
 * keys and values are computed again it goes on with the same bits. The oldest is never preempted for another, so it always finishes: nobody starves.
 */
export class Scheduler {
  readonly counters: SchedulerCounters = { numPreemptions: 0, prefixCacheQueries: 0, prefixCacheHits: 0 };
  readonly #config: EngineConfig;
  readonly #blocks: BlockManager;
  /** Both by rising arrival. */
  readonly #waiting: Sequence[] = [];
  readonly #running: Sequence[] = [];
  #refused: RefusedSequence[] = [];
  /** Free blocks when the first waiting sequence was last turned away: with no more than that it need not ask again. */
  #numFreeWhenBlocked = -1;
  /** What is left of the step that is being made. */
  #tokens = 0;
  #rows = 0;
  #adjustments = 0;
  /** A running sequence got nothing, so nobody new may come in its way. */
  #hasDeferred = false;

  constructor(config: EngineConfig, blocks: BlockManager) {
    this.#config = config;
    this.#blocks = blocks;
  }

  get numWaiting(): number {
    return this.#waiting.length;
  }

  get numRunning(): number {
    return this.#running.length;
  }

  add(sequence: Sequence): void {
    // Hashed here, while a step runs, and not when the next one is made: a long prompt has thousands of blocks.
    this.#blocks.extendPrefix(sequence.prefix, sequence.tokenIds);
    this.#waiting.push(sequence);
  }

  /** Takes a sequence out, wherever it is, and frees its blocks. Never while schedule() runs; while a step executes is fine. */
  finish(sequence: Sequence): void {
    const list = sequence.status === 'running' ? this.#running : this.#waiting;
    const index = list.indexOf(sequence);
    if (index >= 0) list.splice(index, 1);
    if (list === this.#waiting && index === 0) this.#numFreeWhenBlocked = -1;
    sequence.status = 'finished';
    sequence.numScheduledTokens = 0;
    this.#blocks.free(sequence.blockTable);
  }

  /** Sequences that schedule() found impossible since the last call; they are finished. */
  takeRefused(): readonly RefusedSequence[] {
    if (this.#refused.length === 0) return [];
    const refused = this.#refused;
    this.#refused = [];
    return refused;
  }

  /** The next step, or undefined when there is nothing to run. */
  schedule(): ScheduledStep | undefined {
    this.#tokens = this.#config.maxNumBatchedTokens;
    this.#rows = this.#config.maxLogitRows;
    this.#adjustments = this.#config.maxAdjustments;
    this.#hasDeferred = false;
    const numPreemptions = this.counters.numPreemptions;
    this.#scheduleRunning(true);
    this.#scheduleRunning(false);
    if (this.#canAdmit(numPreemptions)) this.#admit();

    const sequences = this.#running.filter((sequence) => sequence.numScheduledTokens > 0);
    if (sequences.length > 0) return { batch: { sequences: sequences.map((sequence) => sequence.toBatch()) }, sequences };
    // Refusing the last running sequence frees blocks for those who wait.
    return this.#canRetry() ? this.schedule() : undefined;
  }

  /** Nobody was preempted in this step, and nobody who runs got nothing. */
  #canAdmit(numPreemptionsBefore: number): boolean {
    return this.counters.numPreemptions === numPreemptionsBefore && !this.#hasDeferred;
  }

  #canRetry(): boolean {
    return this.#refused.length > 0 && this.#waiting.length > 0 && this.#running.length === 0;
  }

  /** The step's keys and values are in the cache: moves on, and offers blocks that became full for reuse. */
  complete(step: ScheduledStep): void {
    for (const sequence of step.sequences) {
      if (sequence.status !== 'running') continue;
      sequence.numComputedTokens += sequence.numScheduledTokens;
      sequence.numScheduledTokens = 0;
      const numFull = Math.floor(sequence.numComputedTokens / this.#blocks.blockSize);
      if (numFull <= sequence.numOfferedBlocks) continue;
      this.#blocks.extendPrefix(sequence.prefix, sequence.tokenIds);
      for (let i = sequence.numOfferedBlocks; i < numFull; i++) {
        const node = sequence.prefix[i];
        const block = sequence.blockTable[i];
        if (node !== undefined && block !== undefined) this.#blocks.cache(block, node);
      }
      sequence.numOfferedBlocks = numFull;
    }
  }

  #scheduleRunning(isDecoding: boolean): void {
    // Preemption shortens the list from its end while this loop goes forward.
    for (const sequence of this.#running) {
      if (sequence.isDecoding !== isDecoding) continue;
      const numTokens = this.#chunkLength(sequence, sequence.numComputedTokens);
      if (numTokens > 0 && this.#makeRoom(sequence, sequence.numComputedTokens + numTokens)) this.#take(sequence, numTokens);
      else if (numTokens === 0 && !this.#refuseImpossible(sequence)) this.#hasDeferred = true;
    }
  }

  /** Grows the block table to so many positions, preempting the youngest; false when the sequence itself had to go. */
  #makeRoom(sequence: Sequence, numPositions: number): boolean {
    const numBlocks = this.#blocks.blocksFor(numPositions);
    while (!this.#blocks.grow(sequence.blockTable, numBlocks)) {
      const youngest = this.#running.at(-1);
      if (youngest === undefined) return false;
      if (this.#running.length === 1) {
        this.#refuse(sequence, this.#outOfBlocks(numBlocks));
        return false;
      }
      this.#preempt(youngest);
      if (youngest === sequence) return false;
    }
    return true;
  }

  /** The youngest. It has no part in this step yet: only decoding asks for blocks, it comes first, and the older before the younger. */
  #preempt(sequence: Sequence): void {
    this.#running.pop();
    this.#blocks.free(sequence.blockTable);
    sequence.status = 'waiting';
    sequence.numComputedTokens = 0;
    sequence.numOfferedBlocks = 0;
    sequence.numPreemptions++;
    this.counters.numPreemptions++;
    this.#waiting.unshift(sequence);
    this.#numFreeWhenBlocked = -1;
  }

  #admit(): void {
    while (this.#running.length < this.#config.maxNumSeqs && this.#tokens > 0 && this.#rows > 0) {
      const sequence = this.#waiting[0];
      if (sequence === undefined) return;
      const blocks = this.#blocks;
      const isAlone = this.#running.length === 0;
      if (!isAlone && blocks.numFreeBlocks <= this.#numFreeWhenBlocked) return;
      const numBlocks = blocks.blocksFor(sequence.tokenIds.length);
      if (numBlocks > blocks.numBlocks) {
        this.#refuse(sequence, this.#outOfBlocks(numBlocks));
        continue;
      }
      blocks.extendPrefix(sequence.prefix, sequence.tokenIds);
      const cached = blocks.findPrefix(sequence.prefix, Math.floor(sequence.maxSkippedTokens / blocks.blockSize));
      const numCachedTokens = cached.length * blocks.blockSize;
      const numTokens = this.#chunkLength(sequence, numCachedTokens);
      if (numTokens === 0) {
        if (this.#refuseImpossible(sequence)) continue;
        return;
      }
      const reserve = isAlone ? 0 : Math.ceil(reservedPart * blocks.numBlocks);
      if (!blocks.allocate(sequence.blockTable, cached, numBlocks, reserve)) {
        this.#numFreeWhenBlocked = blocks.numFreeBlocks;
        return;
      }
      this.#numFreeWhenBlocked = -1;
      this.#waiting.shift();
      this.#running.push(sequence);
      sequence.status = 'running';
      sequence.numComputedTokens = numCachedTokens;
      sequence.numOfferedBlocks = cached.length;
      if (sequence.numCachedTokens === undefined) {
        sequence.numCachedTokens = numCachedTokens;
        this.counters.prefixCacheQueries += sequence.promptLength;
        this.counters.prefixCacheHits += numCachedTokens;
      }
      this.#take(sequence, numTokens);
    }
  }

  #chunkLength(sequence: Sequence, start: number): number {
    return sequence.chunkLength(start, this.#tokens, this.#rows, this.#adjustments);
  }

  #take(sequence: Sequence, numTokens: number): void {
    const start = sequence.numComputedTokens;
    sequence.numScheduledTokens = numTokens;
    this.#tokens -= numTokens;
    this.#rows -= sequence.countRows(start, numTokens);
    if (start + numTokens === sequence.tokenIds.length) this.#adjustments -= sequence.adjustments.entries.length;
  }

  /** A sequence that got nothing waits for the next step, unless even a step of its own could not hold it. */
  #refuseImpossible(sequence: Sequence): boolean {
    const numAdjustments = sequence.adjustments.entries.length;
    if (numAdjustments <= this.#config.maxAdjustments) return false;
    const limit = this.#config.maxAdjustments;
    const message =
      `penalties, logit_bias and min_tokens of this request concern ${String(numAdjustments)} different tokens; ` +
      `one step can adjust ${String(limit)}. Shorten the prompt or leave the penalties out`;
    this.#refuse(sequence, new MoeError('MOE_CAPACITY_MEMORY', message, { numAdjustments, limit }));
    return true;
  }

  #refuse(sequence: Sequence, error: MoeError): void {
    this.finish(sequence);
    this.#refused.push({ sequence, error });
  }

  #outOfBlocks(numBlocks: number): MoeError {
    const { numBlocks: available, blockSize } = this.#blocks;
    const message =
      `the request needs ${String(numBlocks)} KV cache blocks of ${String(blockSize)} tokens; the cache has ${String(available)}. ` +
      'Shorten it, or give the cache more memory (--kv-cache-memory-bytes)';
    return new MoeError('MOE_CAPACITY_MEMORY', message, { needed: numBlocks, available, blockSize });
  }
}
