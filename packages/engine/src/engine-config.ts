import { MoeError } from '@moe-server/core';
import type { Batch, StepOutput } from './batch.js';
import type { StepLimits } from './device/step-inputs.js';

/** What the engine needs of a model runner. */
export interface ModelRunnerLike {
  readonly limits: StepLimits;
  /** Token ids are below it. */
  readonly vocabSize: number;
  /**
   * Runs one step. Reads the batch before its first await; one call at a time. A row without a usable logit has tokenId −1.
   *
   * @throws {MoeError} when the step failed as a whole; its outputs are lost.
   */
  readonly execute: (batch: Batch) => Promise<StepOutput>;
}

export interface EngineOptions {
  readonly runner: ModelRunnerLike;
  /** Blocks of the KV cache. */
  readonly numBlocks: number;
  /** Token positions per block. */
  readonly blockSize: number;
  /** Prompt and generated tokens of one request together. */
  readonly maxModelLen: number;
  /** The model's end tokens, from generation_config.json. */
  readonly eosTokenIds: readonly number[];
  /** Requests that run at the same time; default: what a step of the runner holds. */
  readonly maxNumSeqs?: number;
  /** Tokens of one step; default: what a step of the runner holds. */
  readonly maxNumBatchedTokens?: number;
  /** Default true. */
  readonly enablePrefixCaching?: boolean;
  /** Monotonic, in milliseconds; default performance.now. */
  readonly clock?: () => number;
  /** Seeds for requests that name none; default: the system's random numbers. */
  readonly randomSeed?: () => bigint;
}

/** What a server is told, and what the model brings, as far as it decides how large a step may be. */
export interface StepSizes {
  readonly maxNumSeqs: number;
  readonly maxNumBatchedTokens: number;
  readonly maxModelLen: number;
  readonly blockSize: number;
  readonly vocabSize: number;
}

/** Memory for the logits of one step; what is left of it beside one row per sequence scores prompts. */
const maxLogitBytes = 64 * 2 ** 20;
/** Adjustments that every step can hold, 16 bytes each, so that a few requests with penalties and long prompts run side by side. */
const minAdjustments = 65_536;
/** Beside the tokens of prompt and answer a request can name so many: logit_bias, stop_token_ids and the model's end tokens. */
const maxNamedTokens = 2048;

/** Limits for the runner such that no request that fits the context is ever too large for a step. */
export function stepLimitsFor({ maxNumSeqs, maxNumBatchedTokens, maxModelLen, blockSize, vocabSize }: StepSizes): StepLimits {
  const adjustmentsOfOne = Math.min(vocabSize, maxModelLen + maxNamedTokens);
  return {
    maxNumTokens: maxNumBatchedTokens,
    maxNumSeqs,
    maxLogitRows: Math.max(maxNumSeqs, Math.min(maxNumBatchedTokens, Math.floor(maxLogitBytes / (4 * vocabSize)))),
    maxBlocksPerSeq: Math.ceil(maxModelLen / blockSize),
    maxAdjustments: Math.max(adjustmentsOfOne, Math.min(maxNumSeqs * adjustmentsOfOne, minAdjustments)),
  };
}

/** The numbers of {@link EngineOptions}, complete and consistent. */
export interface EngineConfig {
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly maxModelLen: number;
  readonly eosTokenIds: readonly number[];
  readonly maxNumSeqs: number;
  readonly maxNumBatchedTokens: number;
  readonly maxLogitRows: number;
  readonly maxAdjustments: number;
  readonly enablePrefixCaching: boolean;
  readonly vocabSize: number;
}

/**
 * Fills in defaults and checks the numbers against each other and against the runner.
 *
 * @throws {MoeError} MOE_USAGE naming the option.
 */
export function resolveEngineConfig(options: EngineOptions): EngineConfig {
  const { runner, numBlocks, blockSize, maxModelLen } = options;
  const { limits } = runner;
  const config: EngineConfig = {
    numBlocks,
    blockSize,
    maxModelLen,
    eosTokenIds: options.eosTokenIds,
    maxNumSeqs: options.maxNumSeqs ?? limits.maxNumSeqs,
    maxNumBatchedTokens: options.maxNumBatchedTokens ?? limits.maxNumTokens,
    maxLogitRows: limits.maxLogitRows,
    maxAdjustments: limits.maxAdjustments,
    enablePrefixCaching: options.enablePrefixCaching ?? true,
    vocabSize: runner.vocabSize,
  };
  for (const name of ['numBlocks', 'blockSize', 'maxModelLen', 'maxNumSeqs', 'maxNumBatchedTokens'] as const) {
    const value = config[name];
    if (!Number.isSafeInteger(value) || value < 1) throw refuse(name, `must be a whole number of at least 1, got ${String(value)}`);
  }
  if (config.maxNumBatchedTokens > limits.maxNumTokens)
    throw refuse('maxNumBatchedTokens', exceeds(config.maxNumBatchedTokens, 'tokens', limits.maxNumTokens));
  if (config.maxNumSeqs > limits.maxNumSeqs) throw refuse('maxNumSeqs', exceeds(config.maxNumSeqs, 'sequences', limits.maxNumSeqs));
  if (config.maxNumSeqs > limits.maxLogitRows) throw refuse('maxNumSeqs', exceeds(config.maxNumSeqs, 'logit rows', limits.maxLogitRows));
  if (config.maxNumSeqs > config.maxNumBatchedTokens) {
    const message = `(${String(config.maxNumBatchedTokens)}) must be at least maxNumSeqs (${String(config.maxNumSeqs)}), so that every running request gets a token per step`;
    throw refuse('maxNumBatchedTokens', message);
  }
  if (Math.ceil(maxModelLen / blockSize) > limits.maxBlocksPerSeq) {
    const most = limits.maxBlocksPerSeq * blockSize;
    throw refuse('maxModelLen', `(${String(maxModelLen)}) is more than the ${String(most)} positions one sequence can have in this runner`);
  }
  return config;
}

function exceeds(value: number, what: string, limit: number): string {
  return `(${String(value)}) is more than the ${String(limit)} ${what} a step of this runner holds`;
}

function refuse(option: keyof EngineConfig, message: string): MoeError {
  return new MoeError('MOE_USAGE', `${option} ${message}`, { option });
}
