import type { Batch, BatchSequence, LogitRow, RowOutput, StepOutput } from '../src/batch.js';
import type { ModelRunnerLike } from '../src/engine-config.js';
import type { StepLimits } from '../src/device/step-inputs.js';
import type { SamplingParams } from '../src/request.js';

export interface FakeRunnerOptions {
  readonly vocabSize?: number;
  readonly blockSize?: number;
  readonly limits?: Partial<StepLimits>;
  /** Overrides what would be sampled; undefined = leave it. Throwing fails the step. */
  readonly script?: (context: readonly number[], row: LogitRow) => number | undefined;
}

/**
 * A model whose "logits" are a hash of everything it finds in its KV cache: it writes token ids to slots and reads them back through the block
 * tables, so any block that is shared wrongly, freed too early or not computed changes the result.
 */
export class FakeRunner implements ModelRunnerLike {
  readonly vocabSize: number;
  readonly limits: StepLimits;
  readonly batches: Batch[] = [];
  /** Called before each step is computed. */
  beforeStep: (step: number, batch: Batch) => void | Promise<void> = () => undefined;
  readonly #blockSize: number;
  readonly #slots = new Map<number, number>();
  readonly #script: NonNullable<FakeRunnerOptions['script']>;

  constructor({ vocabSize = 1000, blockSize = 4, limits = {}, script = () => undefined }: FakeRunnerOptions = {}) {
    this.vocabSize = vocabSize;
    this.#blockSize = blockSize;
    this.#script = script;
    this.limits = { maxNumTokens: 64, maxNumSeqs: 8, maxLogitRows: 64, maxBlocksPerSeq: 64, maxAdjustments: 4096, ...limits };
  }

  async execute(batch: Batch): Promise<StepOutput> {
    // The contract: the batch is read before the first await.
    const copy = structuredClone(batch);
    this.#check(copy);
    this.batches.push(copy);
    await this.beforeStep(this.batches.length - 1, copy);
    for (const sequence of copy.sequences) this.#store(sequence);
    return { rows: copy.sequences.map((sequence) => sequence.rows.map((row) => this.#row(sequence, row))) };
  }

  #check({ sequences }: Batch): void {
    const sum = (of: (sequence: BatchSequence) => number): number => sequences.reduce((total, sequence) => total + of(sequence), 0);
    const { limits } = this;
    const numAdjustments = sum(({ rows }) => rows.reduce((total, row) => total + row.adjustments.length, 0));
    if (sequences.length === 0 || sequences.length > limits.maxNumSeqs) throw new RangeError(`${String(sequences.length)} sequences`);
    if (sum(({ tokenIds }) => tokenIds.length) > limits.maxNumTokens) throw new RangeError('too many tokens');
    if (sum(({ rows }) => rows.length) > limits.maxLogitRows) throw new RangeError('too many rows');
    if (numAdjustments > limits.maxAdjustments) throw new RangeError('too many adjustments');
    for (const { tokenIds, startPosition, blockTable } of sequences) {
      if (tokenIds.length === 0) throw new RangeError('a sequence without tokens');
      if (blockTable.length * this.#blockSize < startPosition + tokenIds.length) throw new RangeError('the block table is too short');
      if (new Set(blockTable).size !== blockTable.length) throw new RangeError('a block stands twice in a table');
    }
  }

  #slot({ blockTable }: BatchSequence, position: number): number {
    return (blockTable[Math.floor(position / this.#blockSize)] ?? NaN) * this.#blockSize + (position % this.#blockSize);
  }

  #store(sequence: BatchSequence): void {
    sequence.tokenIds.forEach((tokenId, i) => this.#slots.set(this.#slot(sequence, sequence.startPosition + i), tokenId));
  }

  #row(sequence: BatchSequence, row: LogitRow): RowOutput {
    const length = sequence.startPosition + row.tokenIndex + 1;
    const context = Array.from({ length }, (_, position) => this.#slots.get(this.#slot(sequence, position)) ?? -1);
    const masked = new Set(row.adjustments.filter(({ bias }) => bias === -Infinity).map(({ tokenId }) => tokenId));
    const adjusted = [...row.adjustments]
      .sort((a, b) => a.tokenId - b.tokenId)
      .flatMap((a) => [a.tokenId, a.bias, a.outputCount, a.isSeen ? 1 : 0]);
    const hash = hashOf([
      ...context,
      ...adjusted,
      row.temperature > 0 ? Number(row.seed % 65_536n) : 0,
      row.temperature > 0 ? row.counter : 0,
    ]);
    let tokenId = row.target >= 0 ? row.target : (this.#script(context, row) ?? hash % this.vocabSize);
    while (masked.has(tokenId)) tokenId = (tokenId + 1) % this.vocabSize;
    const logprob = -hashOf([...context, tokenId]) / 2 ** 32;
    const topLogprobs = Array.from({ length: row.numTopLogprobs }, (_, i) => ({ tokenId: (hash + i) % this.vocabSize, logprob: -i }));
    return { tokenId, logprob, rank: 1 + (hash % 7), topLogprobs };
  }
}

/** FNV-1a over 32-bit words. */
function hashOf(words: readonly number[]): number {
  let hash = 0x811c9dc5;
  for (const word of words) hash = Math.imul(hash ^ (word === -Infinity ? 0x7fffffff : Math.round(word * 1024)), 0x01000193) >>> 0;
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d) >>> 0;
  return (hash ^ (hash >>> 13)) >>> 0;
}

/** Greedy, 8 tokens, nothing else asked for. */
export function sampling(changes: Partial<SamplingParams> = {}): SamplingParams {
  return {
    maxTokens: 8,
    minTokens: 0,
    temperature: 0,
    topK: 0,
    topP: 1,
    minP: 0,
    repetitionPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    logitBias: [],
    seed: undefined,
    logprobs: undefined,
    promptLogprobs: undefined,
    stopTokenIds: [],
    ignoreEos: false,
    ...changes,
  };
}

/** `length` ids below 900, different for every seed. */
export function prompt(length: number, seed = 0): number[] {
  return Array.from({ length }, (_, i) => hashOf([seed, i]) % 900);
}
