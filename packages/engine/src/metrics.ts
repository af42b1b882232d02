import type { FinishReason } from './request.js';
import type { Sequence } from './sequence.js';

/** State and sums of the engine at one moment: plain data that crosses the process border. Counts are since the start. */
export interface EngineStats {
  readonly numRunning: number;
  readonly numWaiting: number;
  /** Part of the KV cache blocks in use, 0 to 1. */
  readonly kvCacheUsage: number;
  readonly numBlocks: number;
  readonly blockSize: number;
  /** In prompt tokens. */
  readonly prefixCacheQueries: number;
  readonly prefixCacheHits: number;
  readonly numPreemptions: number;
  /** Prompt tokens of requests that began to run, cached ones included. */
  readonly promptTokens: number;
  readonly generationTokens: number;
  readonly numSteps: number;
  readonly numFailedSteps: number;
  /** Requests that failed because a logit was not a number. */
  readonly numCorruptedRequests: number;
  readonly finished: Readonly<Record<FinishReason | 'error', number>>;
  /** Time between the end of a step and the start of the next while there was work, summed; divide by numSteps. */
  readonly betweenStepsMs: number;
}

/** One request from its arrival to its end. Milliseconds; what was never reached is undefined. */
export interface RequestTiming {
  readonly requestId: string;
  readonly reason: FinishReason | 'error';
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly cachedTokens: number;
  readonly maxTokens: number;
  readonly numPreemptions: number;
  /** From arrival to the first step. */
  readonly queueMs: number | undefined;
  /** From the first step to the first token. */
  readonly prefillMs: number | undefined;
  /** From the first token to the last. */
  readonly decodeMs: number | undefined;
  /** From arrival to the first token: the queue counts. */
  readonly ttftMs: number | undefined;
  readonly e2eMs: number;
}

/** Observations for histograms since the last {@link EngineMetrics.take}. */
export interface MetricsDelta {
  readonly ttftMs: readonly number[];
  /** Gaps between tokens of one request. */
  readonly itlMs: readonly number[];
  /** Tokens of each step. */
  readonly stepTokens: readonly number[];
  readonly requests: readonly RequestTiming[];
  /** Observations thrown away because nobody took them in time. */
  readonly numDropped: number;
}

/** Observations kept of each kind until somebody takes them. */
const maxObservations = 16_384;

/** Collects what the engine's loop sees. All times come from the engine's own monotonic clock. */
export class EngineMetrics {
  promptTokens = 0;
  generationTokens = 0;
  numSteps = 0;
  numFailedSteps = 0;
  numCorruptedRequests = 0;
  betweenStepsMs = 0;
  readonly finished: Record<FinishReason | 'error', number> = { stop: 0, length: 0, abort: 0, error: 0 };
  #ttftMs: number[] = [];
  #itlMs: number[] = [];
  #stepTokens: number[] = [];
  #requests: RequestTiming[] = [];
  #numDropped = 0;

  /** A step was handed to the runner. */
  stepStarted(sequences: readonly Sequence[], now: number): void {
    let numTokens = 0;
    for (const sequence of sequences) {
      numTokens += sequence.numScheduledTokens;
      if (sequence.startedAt !== undefined) continue;
      sequence.startedAt = now;
      this.promptTokens += sequence.promptLength;
    }
    this.numSteps++;
    this.#observe(this.#stepTokens, numTokens);
  }

  /** A sequence got a token. */
  tokenGenerated(sequence: Sequence, now: number): void {
    this.generationTokens++;
    if (sequence.lastTokenAt === undefined) {
      sequence.firstTokenAt = now;
      this.#observe(this.#ttftMs, now - sequence.arrivedAt);
    } else {
      this.#observe(this.#itlMs, now - sequence.lastTokenAt);
    }
    sequence.lastTokenAt = now;
  }

  requestEnded(sequence: Sequence, reason: FinishReason | 'error', now: number): void {
    this.finished[reason]++;
    const { arrivedAt, startedAt, firstTokenAt, lastTokenAt } = sequence;
    this.#observe(this.#requests, {
      requestId: sequence.id,
      reason,
      ...sequence.usage,
      maxTokens: sequence.sampling.maxTokens,
      numPreemptions: sequence.numPreemptions,
      queueMs: startedAt === undefined ? undefined : startedAt - arrivedAt,
      prefillMs: startedAt === undefined || firstTokenAt === undefined ? undefined : firstTokenAt - startedAt,
      decodeMs: firstTokenAt === undefined || lastTokenAt === undefined ? undefined : lastTokenAt - firstTokenAt,
      ttftMs: firstTokenAt === undefined ? undefined : firstTokenAt - arrivedAt,
      e2eMs: now - arrivedAt,
    });
  }

  /** Hands out the observations and begins anew. */
  take(): MetricsDelta {
    const delta: MetricsDelta = {
      ttftMs: this.#ttftMs,
      itlMs: this.#itlMs,
      stepTokens: this.#stepTokens,
      requests: this.#requests,
      numDropped: this.#numDropped,
    };
    this.#ttftMs = [];
    this.#itlMs = [];
    this.#stepTokens = [];
    this.#requests = [];
    this.#numDropped = 0;
    return delta;
  }

  #observe<T>(observations: T[], value: T): void {
    if (observations.length < maxObservations) observations.push(value);
    else this.#numDropped++;
  }
}
