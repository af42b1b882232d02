import type { Adjustment } from './batch.js';
import type { SamplingParams } from './request.js';

interface MutableAdjustment {
  tokenId: number;
  bias: number;
  outputCount: number;
  isSeen: boolean;
}

const none: readonly Adjustment[] = [];

/**
 * What has to be done to the logits of one sequence before its next token is drawn: biases, end tokens masked until min_tokens, and the counts
 * that penalties need. Kept up token by token; nothing is counted again.
 */
export class LogitAdjustments {
  readonly #byToken = new Map<number, MutableAdjustment>();
  /** Masked for now, with the bias each gets afterwards. */
  readonly #masked: readonly (readonly [tokenId: number, bias: number])[];
  readonly #isCounting: boolean;
  #entries: MutableAdjustment[] = [];

  /** @param endTokenIds - tokens that must not come before sampling.minTokens were generated. */
  constructor(sampling: SamplingParams, promptTokenIds: readonly number[], endTokenIds: readonly number[]) {
    const isSeenNeeded = sampling.repetitionPenalty !== 1;
    this.#isCounting = isSeenNeeded || sampling.presencePenalty !== 0 || sampling.frequencyPenalty !== 0;
    if (isSeenNeeded) for (const tokenId of promptTokenIds) this.#entry(tokenId).isSeen = true;
    for (const [tokenId, bias] of sampling.logitBias) this.#entry(tokenId).bias += bias;
    this.#masked =
      sampling.minTokens > 0 ? [...new Set(endTokenIds)].map((tokenId) => [tokenId, this.#byToken.get(tokenId)?.bias ?? 0] as const) : [];
    for (const [tokenId] of this.#masked) this.#entry(tokenId).bias = -Infinity;
  }

  /** Of the next token. Valid until the next call of {@link add} or {@link unmask}. */
  get entries(): readonly Adjustment[] {
    return this.#entries.length === 0 ? none : this.#entries;
  }

  /** Tokens that cannot come. */
  get numMasked(): number {
    return this.#entries.reduce((count, entry) => (entry.bias === -Infinity ? count + 1 : count), 0);
  }

  /** A token was generated. */
  add(tokenId: number): void {
    if (!this.#isCounting) return;
    const entry = this.#entry(tokenId);
    entry.outputCount++;
    entry.isSeen = true;
  }

  /** min_tokens were generated: end tokens may come. */
  unmask(): void {
    if (this.#masked.length === 0) return;
    for (const [tokenId, bias] of this.#masked) this.#entry(tokenId).bias = bias;
    this.#entries = this.#entries.filter((entry) => {
      const isNeutral = entry.bias === 0 && entry.outputCount === 0 && !entry.isSeen;
      if (isNeutral) this.#byToken.delete(entry.tokenId);
      return !isNeutral;
    });
  }

  #entry(tokenId: number): MutableAdjustment {
    let entry = this.#byToken.get(tokenId);
    if (entry === undefined) {
      entry = { tokenId, bias: 0, outputCount: 0, isSeen: false };
      this.#byToken.set(tokenId, entry);
      this.#entries.push(entry);
    }
    return entry;
  }
}
