/** The work of one step, as the scheduler hands it to the model runner. */
export interface Batch {
  readonly sequences: readonly BatchSequence[];
}

export interface BatchSequence {
  /** Tokens whose keys and values this step computes, one or more. */
  readonly tokenIds: readonly number[];
  /** Position of the first of them; everything before is in the cache. */
  readonly startPosition: number;
  /** KV blocks of the sequence from position 0 on, covering at least startPosition + tokenIds.length positions. */
  readonly blockTable: readonly number[];
  /** Tokens of this step whose logits are wanted, in rising order. */
  readonly rows: readonly LogitRow[];
}

export interface LogitRow {
  /** Index into the sequence's tokenIds. */
  readonly tokenIndex: number;
  /** −1: sample. Otherwise: only score this token. */
  readonly target: number;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly seed: bigint;
  /** Tokens the sequence has generated before this one. */
  readonly counter: number;
  readonly numTopLogprobs: number;
  readonly adjustments: readonly Adjustment[];
}

/** What is done to one logit of one row before sampling; see step-inputs.ts. */
export interface Adjustment {
  readonly tokenId: number;
  /** Added; −Infinity masks the token. */
  readonly bias: number;
  /** How often the sequence has generated the token. */
  readonly outputCount: number;
  /** The token stands in the prompt or the output. */
  readonly isSeen: boolean;
}

export interface StepOutput {
  /** One list per sequence of the batch, one entry per logit row. */
  readonly rows: readonly (readonly RowOutput[])[];
}

export interface RowOutput {
  readonly tokenId: number;
  readonly logprob: number;
  readonly rank: number;
  readonly topLogprobs: readonly { readonly tokenId: number; readonly logprob: number }[];
}
