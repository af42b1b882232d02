import type { BatchSequence, LogitRow, RowOutput } from './batch.js';
import type { PrefixNode } from './block-manager.js';
import { LogitAdjustments } from './logit-adjustments.js';
import type { GenerationRequest, SamplingParams, TokenOutput, Usage } from './request.js';

/** waiting → running → finished, and back from running to waiting when preempted. */
export type SequenceStatus = 'waiting' | 'running' | 'finished';

export interface SequenceOptions {
  readonly request: GenerationRequest;
  /** Rises from request to request; the older goes first. */
  readonly arrival: number;
  /** Seed of the sampler where the request names none. */
  readonly randomSeed: bigint;
  /** The model's own end tokens. */
  readonly eosTokenIds: readonly number[];
  /** Milliseconds on the engine's clock. */
  readonly arrivedAt: number;
}

/** The only state of one request that changes. The scheduler moves it, the engine appends tokens, nobody else writes. */
export class Sequence {
  readonly id: string;
  readonly sampling: SamplingParams;
  readonly arrival: number;
  readonly promptLength: number;
  /** The prompt, then what was generated. */
  readonly tokenIds: number[];
  readonly adjustments: LogitAdjustments;

  status: SequenceStatus = 'waiting';
  /** Tokens whose keys and values are in the cache. */
  numComputedTokens = 0;
  /** Tokens of the step that is being made or run. */
  numScheduledTokens = 0;
  /** KV blocks from position 0 on. */
  readonly blockTable: number[] = [];
  /** Identity of the full blocks of {@link tokenIds}; see BlockManager.extendPrefix. */
  readonly prefix: PrefixNode[] = [];
  /** Leading full blocks that were offered for reuse. */
  numOfferedBlocks = 0;
  /** Prompt tokens that the cache held when the sequence first ran; undefined before. */
  numCachedTokens: number | undefined;
  /** Log-probabilities of the prompt so far; entry 0 has no context. Undefined where not asked for. */
  readonly promptOutputs: (TokenOutput | undefined)[] | undefined;

  readonly arrivedAt: number;
  startedAt: number | undefined;
  firstTokenAt: number | undefined;
  lastTokenAt: number | undefined;
  numPreemptions = 0;

  readonly #endTokenIds: ReadonlySet<number>;
  readonly #sampleRow: { -readonly [K in keyof LogitRow]: LogitRow[K] };

  constructor({ request, arrival, randomSeed, eosTokenIds, arrivedAt }: SequenceOptions) {
    const { sampling, promptTokenIds } = request;
    this.id = request.id;
    this.sampling = sampling;
    this.arrival = arrival;
    this.promptLength = promptTokenIds.length;
    this.tokenIds = [...promptTokenIds];
    this.arrivedAt = arrivedAt;
    this.promptOutputs = sampling.promptLogprobs === undefined ? undefined : [undefined];
    const endTokenIds = sampling.ignoreEos ? sampling.stopTokenIds : [...eosTokenIds, ...sampling.stopTokenIds];
    this.#endTokenIds = new Set(endTokenIds);
    this.adjustments = new LogitAdjustments(sampling, promptTokenIds, endTokenIds);
    this.#sampleRow = {
      tokenIndex: 0,
      target: -1,
      temperature: sampling.temperature,
      topK: sampling.topK,
      topP: sampling.topP,
      minP: sampling.minP,
      repetitionPenalty: sampling.repetitionPenalty,
      presencePenalty: sampling.presencePenalty,
      frequencyPenalty: sampling.frequencyPenalty,
      seed: BigInt.asUintN(64, sampling.seed === undefined ? randomSeed : BigInt(sampling.seed)),
      counter: 0,
      numTopLogprobs: sampling.logprobs ?? 0,
      adjustments: this.adjustments.entries,
    };
  }

  get numGeneratedTokens(): number {
    return this.tokenIds.length - this.promptLength;
  }

  /** Tokens that are known and not computed; one while decoding. */
  get numPendingTokens(): number {
    return this.tokenIds.length - this.numComputedTokens;
  }

  /** One token per step, as against chunks of a prompt or of what a preemption lost. */
  get isDecoding(): boolean {
    return this.numPendingTokens === 1 && this.numGeneratedTokens > 0;
  }

  get isPromptScored(): boolean {
    return this.promptOutputs === undefined || this.promptOutputs.length === this.promptLength;
  }

  /** The prefix cache must not skip further: the logits at the last of these positions, or at the next one, are wanted. */
  get maxSkippedTokens(): number {
    const numScored = this.promptOutputs?.length ?? this.promptLength;
    return Math.min(this.tokenIds.length - 1, numScored < this.promptLength ? numScored - 1 : Infinity);
  }

  get usage(): Usage {
    return { promptTokens: this.promptLength, completionTokens: this.numGeneratedTokens, cachedTokens: this.numCachedTokens ?? 0 };
  }

  isEndToken(tokenId: number): boolean {
    return this.#endTokenIds.has(tokenId);
  }

  /** Logit rows of a chunk of `numTokens` beginning at position `start`. */
  countRows(start: number, numTokens: number): number {
    return this.#countScoredRows(start, numTokens) + (this.#isSampling(start + numTokens) ? 1 : 0);
  }

  /** The largest chunk at position `start` with at most `maxTokens` tokens, `maxRows` logit rows and `maxAdjustments` adjustments. */
  chunkLength(start: number, maxTokens: number, maxRows: number, maxAdjustments: number): number {
    const firstScored = this.#firstScored;
    const firstRow = firstScored < this.promptLength - 1 ? Math.max(start, firstScored) : this.tokenIds.length - 1;
    let numTokens = Math.min(maxTokens, this.tokenIds.length - start, firstRow - start + maxRows);
    if (this.#isSampling(start + numTokens) && this.adjustments.entries.length > maxAdjustments) numTokens--;
    if (numTokens > 0 && this.countRows(start, numTokens) > maxRows) numTokens--;
    return Math.max(numTokens, 0);
  }

  /** The sequence's part of a batch: its next `numScheduledTokens` tokens. */
  toBatch(): BatchSequence {
    const start = this.numComputedTokens;
    const end = start + this.numScheduledTokens;
    const rows: LogitRow[] = [];
    const numScored = this.#countScoredRows(start, this.numScheduledTokens);
    for (let i = 0; i < numScored; i++) {
      const position = Math.max(start, this.#firstScored) + i;
      rows.push(scoringRow(position - start, this.tokenIds[position + 1] ?? 0, this.sampling.promptLogprobs ?? 0));
    }
    if (this.#isSampling(end)) {
      const row = this.#sampleRow;
      row.tokenIndex = this.numScheduledTokens - 1;
      row.counter = this.numGeneratedTokens;
      row.adjustments = this.adjustments.entries;
      rows.push(row);
    }
    return { tokenIds: this.tokenIds.slice(start, end), startPosition: start, blockTable: this.blockTable, rows };
  }

  /** Notes the log-probabilities of the next prompt token. */
  addPromptOutput(output: RowOutput): void {
    const numTopLogprobs = this.sampling.promptLogprobs;
    this.promptOutputs?.push({
      // A scored row names its target; the sequence knows it better than the device.
      tokenId: this.tokenIds[this.promptOutputs.length] ?? output.tokenId,
      logprob: output.logprob,
      rank: output.rank,
      topLogprobs: output.topLogprobs.slice(0, numTopLogprobs),
    });
  }

  /** Appends a generated token and returns what is reported of it. */
  addToken(output: RowOutput): TokenOutput {
    this.tokenIds.push(output.tokenId);
    this.adjustments.add(output.tokenId);
    if (this.numGeneratedTokens === this.sampling.minTokens) this.adjustments.unmask();
    const { logprobs } = this.sampling;
    return logprobs === undefined
      ? { tokenId: output.tokenId, logprob: undefined, rank: undefined, topLogprobs: undefined }
      : { tokenId: output.tokenId, logprob: output.logprob, rank: output.rank, topLogprobs: output.topLogprobs.slice(0, logprobs) };
  }

  /** Position of the first token whose logits still have to score its successor. */
  get #firstScored(): number {
    return this.promptOutputs === undefined ? this.promptLength - 1 : this.promptOutputs.length - 1;
  }

  #countScoredRows(start: number, numTokens: number): number {
    return Math.max(0, Math.min(start + numTokens, this.promptLength - 1) - Math.max(start, this.#firstScored));
  }

  /** A chunk that ends there gives the next token. */
  #isSampling(end: number): boolean {
    return end === this.tokenIds.length && this.sampling.maxTokens > 0;
  }
}

function scoringRow(tokenIndex: number, target: number, numTopLogprobs: number): LogitRow {
  return {
    tokenIndex,
    target,
    temperature: 0,
    topK: 0,
    topP: 1,
    minP: 0,
    repetitionPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    seed: 0n,
    counter: 0,
    numTopLogprobs,
    adjustments: [],
  };
}
