import type { SerializedMoeError } from '@moe-server/core';

/** What a caller asks of the engine. Plain data: it crosses the process border as it is. */
export interface GenerationRequest {
  /** Unique among the requests that are alive. */
  readonly id: string;
  /** One or more, each in [0, vocabSize). */
  readonly promptTokenIds: readonly number[];
  readonly sampling: SamplingParams;
}

/** Every field is set: defaults are filled in by {@link resolveSampling} before a request reaches the engine. */
export interface SamplingParams {
  /** Tokens to generate; 0 only together with promptLogprobs. */
  readonly maxTokens: number;
  /** End tokens do not stop before that many were generated. */
  readonly minTokens: number;
  /** 0 = greedy. */
  readonly temperature: number;
  /** 0 = off. */
  readonly topK: number;
  /** In (0, 1]; 1 = off. */
  readonly topP: number;
  /** In [0, 1]; 0 = off. */
  readonly minP: number;
  /** 1 = off. */
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  /** Pairs of token id and bias. */
  readonly logitBias: readonly (readonly [tokenId: number, bias: number])[];
  /** The same seed and request give the same tokens. Undefined = a fresh one. */
  readonly seed: number | undefined;
  /** Alternatives to report per generated token, 0 = only the token's own; undefined = no log-probabilities. */
  readonly logprobs: number | undefined;
  /** The same for the tokens of the prompt. */
  readonly promptLogprobs: number | undefined;
  /** Stop after any of these, beside the model's own end tokens. */
  readonly stopTokenIds: readonly number[];
  /** The model's end tokens do not stop. */
  readonly ignoreEos: boolean;
}

/** One token with what was asked about it. */
export interface TokenOutput {
  readonly tokenId: number;
  /** Natural logarithm of its probability under the unmodified logits; undefined unless asked for. */
  readonly logprob: number | undefined;
  /** 1 = the most probable. */
  readonly rank: number | undefined;
  /** By falling probability. */
  readonly topLogprobs: readonly { readonly tokenId: number; readonly logprob: number }[] | undefined;
}

export type FinishReason = 'stop' | 'length' | 'abort';

export type EngineEvent =
  /** Log-probabilities of the prompt, before the first token; entry 0 (no context) is undefined. */
  | { readonly type: 'prompt'; readonly requestId: string; readonly tokens: readonly (TokenOutput | undefined)[] }
  | { readonly type: 'token'; readonly requestId: string; readonly token: TokenOutput }
  /** The last event of a request. `stopTokenId`: the end or stop token, which was also reported as a token. */
  | {
      readonly type: 'finish';
      readonly requestId: string;
      readonly reason: FinishReason;
      readonly stopTokenId: number | undefined;
      readonly usage: Usage;
    }
  /** The last event of a request that failed; the others go on. */
  | { readonly type: 'error'; readonly requestId: string; readonly error: SerializedMoeError };

export interface Usage {
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** Prompt tokens whose keys and values came from the prefix cache. */
  readonly cachedTokens: number;
}
