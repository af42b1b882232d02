import { MoeError } from '@moe-server/core';
import type { SamplingParams } from './request.js';

/** What a caller may say; everything left out comes from the model's generation_config.json, then from the API's own defaults. */
export type SamplingRequest = { readonly [K in keyof SamplingParams]?: SamplingParams[K] | undefined };

/** What generation_config.json says about sampling and stopping. */
export interface GenerationDefaults {
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repetitionPenalty?: number;
  /** max_new_tokens. */
  readonly maxTokens?: number;
  readonly eosTokenIds: readonly number[];
}

export interface SamplingContext {
  readonly vocabSize: number;
  readonly maxModelLen: number;
  readonly promptLength: number;
}

/** As OpenAI and vLLM have it. */
const maxLogprobs = 20;
const maxLogitBiasEntries = 1024;
const maxStopTokenIds = 128;

interface Range {
  readonly param: string;
  readonly min: number;
  readonly max: number;
  /** `min` itself is not allowed. */
  readonly isOpen?: boolean;
  readonly isInteger?: boolean;
}

const ranges = {
  temperature: { param: 'temperature', min: 0, max: 2 },
  topP: { param: 'top_p', min: 0, max: 1, isOpen: true },
  minP: { param: 'min_p', min: 0, max: 1 },
  topK: { param: 'top_k', min: -1, max: 2 ** 31 - 1, isInteger: true },
  /** Logits are divided by it in float32: by much less they become infinite, by less still it is a 0 that the device refuses. */
  repetitionPenalty: { param: 'repetition_penalty', min: 0.01, max: 10 },
  presencePenalty: { param: 'presence_penalty', min: -2, max: 2 },
  frequencyPenalty: { param: 'frequency_penalty', min: -2, max: 2 },
  maxTokens: { param: 'max_tokens', min: 0, max: Number.MAX_SAFE_INTEGER, isInteger: true },
  minTokens: { param: 'min_tokens', min: 0, max: Number.MAX_SAFE_INTEGER, isInteger: true },
  seed: { param: 'seed', min: Number.MIN_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER, isInteger: true },
  logprobs: { param: 'logprobs', min: 0, max: maxLogprobs, isInteger: true },
  promptLogprobs: { param: 'prompt_logprobs', min: 0, max: maxLogprobs, isInteger: true },
} as const satisfies Partial<Record<keyof SamplingParams, Range>>;

/**
 * Checks what the caller said and fills in the rest. max_tokens left out becomes what is left of the context.
 *
 * @throws {MoeError} MOE_REQUEST_INVALID or MOE_REQUEST_CONTEXT_LENGTH with `details.param` in the API's spelling.
 */
export function resolveSampling(request: SamplingRequest, defaults: GenerationDefaults, context: SamplingContext): SamplingParams {
  const { vocabSize } = context;
  const promptLogprobs = optional(ranges.promptLogprobs, request.promptLogprobs);
  const maxTokens = resolveMaxTokens(request, defaults, context, promptLogprobs);
  const minTokens = inRange(ranges.minTokens, request.minTokens ?? 0);
  if (minTokens > maxTokens) {
    throw invalid('min_tokens', `min_tokens (${String(minTokens)}) must not be more than max_tokens (${String(maxTokens)})`);
  }
  const topK = inRange(ranges.topK, request.topK ?? defaults.topK ?? 0);
  return {
    maxTokens,
    minTokens,
    temperature: inRange(ranges.temperature, request.temperature ?? defaults.temperature ?? 1),
    topK: topK === -1 ? 0 : topK,
    topP: inRange(ranges.topP, request.topP ?? defaults.topP ?? 1),
    minP: inRange(ranges.minP, request.minP ?? defaults.minP ?? 0),
    repetitionPenalty: inRange(ranges.repetitionPenalty, request.repetitionPenalty ?? defaults.repetitionPenalty ?? 1),
    presencePenalty: inRange(ranges.presencePenalty, request.presencePenalty ?? 0),
    frequencyPenalty: inRange(ranges.frequencyPenalty, request.frequencyPenalty ?? 0),
    logitBias: checkLogitBias(request.logitBias ?? [], vocabSize),
    seed: optional(ranges.seed, request.seed),
    logprobs: optional(ranges.logprobs, request.logprobs),
    promptLogprobs,
    stopTokenIds: checkStopTokenIds(request.stopTokenIds ?? [], vocabSize),
    ignoreEos: checkBoolean('ignore_eos', request.ignoreEos ?? false),
  };
}

/**
 * Reads generation_config.json; `do_sample: false` means greedy. Fields that are absent or null stay open.
 *
 * @param json - the parsed file, undefined where there is none.
 * @param fallbackEosTokenId - eos_token_id of config.json, for when this file names none.
 * @throws {MoeError} MOE_CHECKPOINT_CONFIG naming the field.
 */
export function readGenerationDefaults(json: unknown, fallbackEosTokenId?: unknown): GenerationDefaults {
  if (json !== undefined && (typeof json !== 'object' || json === null || Array.isArray(json))) {
    throw new MoeError('MOE_CHECKPOINT_CONFIG', 'generation_config.json: expected an object', { file: 'generation_config.json' });
  }
  const file = (json ?? {}) as Readonly<Record<string, unknown>>;
  const read = (field: string, range: Range): number | undefined => {
    const value = file[field] ?? undefined;
    if (value === undefined || isInRange(range, value)) return value;
    throw unusable('generation_config.json', field, `expected ${describeRange(range)}`, value);
  };
  const isGreedy = file.do_sample === false;
  const settings = {
    temperature: isGreedy ? 0 : read('temperature', ranges.temperature),
    topK: read('top_k', ranges.topK),
    topP: read('top_p', ranges.topP),
    minP: read('min_p', ranges.minP),
    repetitionPenalty: read('repetition_penalty', ranges.repetitionPenalty),
    maxTokens: read('max_new_tokens', { ...ranges.maxTokens, min: 1 }),
  };
  const fromGeneration = file.eos_token_id ?? undefined;
  const eosTokenIds =
    fromGeneration === undefined
      ? readTokenIds('config.json', fallbackEosTokenId ?? [])
      : readTokenIds('generation_config.json', fromGeneration);
  return { ...withoutUndefined(settings), eosTokenIds };
}

function resolveMaxTokens(
  request: SamplingRequest,
  defaults: GenerationDefaults,
  { maxModelLen, promptLength }: SamplingContext,
  promptLogprobs: number | undefined,
): number {
  const room = maxModelLen - promptLength;
  const asked = optional(ranges.maxTokens, request.maxTokens);
  if (asked === 0) {
    if (promptLogprobs === undefined)
      throw invalid('max_tokens', 'max_tokens must be at least 1; 0 is allowed only with echo, to score a prompt');
    if (room >= 0) return 0;
  }
  if (room < 1) {
    const message = `the prompt has ${String(promptLength)} tokens; this model's context holds ${String(maxModelLen)}, prompt and answer together`;
    throw new MoeError('MOE_REQUEST_CONTEXT_LENGTH', message, { param: 'prompt', promptTokens: promptLength, maxModelLen });
  }
  if (asked === undefined) return Math.min(defaults.maxTokens ?? room, room);
  if (asked > room) {
    const message =
      `max_tokens (${String(asked)}) and the prompt (${String(promptLength)} tokens) are together more than this model's context ` +
      `of ${String(maxModelLen)} tokens; at most ${String(room)} can be generated`;
    const details = { param: 'max_tokens', promptTokens: promptLength, maxTokens: asked, maxModelLen };
    throw new MoeError('MOE_REQUEST_CONTEXT_LENGTH', message, details);
  }
  return asked;
}

function checkLogitBias(pairs: SamplingParams['logitBias'], vocabSize: number): SamplingParams['logitBias'] {
  const limit = Math.min(vocabSize, maxLogitBiasEntries);
  if (pairs.length > limit)
    throw invalid('logit_bias', `logit_bias has ${String(pairs.length)} entries; at most ${String(limit)} are allowed`);
  for (const [tokenId, bias] of pairs) {
    checkTokenId('logit_bias', tokenId, vocabSize);
    inRange({ param: 'logit_bias', min: -100, max: 100 }, bias);
  }
  return pairs;
}

function checkStopTokenIds(tokenIds: readonly number[], vocabSize: number): readonly number[] {
  if (tokenIds.length > maxStopTokenIds) {
    throw invalid(
      'stop_token_ids',
      `stop_token_ids has ${String(tokenIds.length)} entries; at most ${String(maxStopTokenIds)} are allowed`,
    );
  }
  for (const tokenId of tokenIds) checkTokenId('stop_token_ids', tokenId, vocabSize);
  return tokenIds;
}

function checkTokenId(param: string, tokenId: unknown, vocabSize: number): void {
  if (Number.isInteger(tokenId) && (tokenId as number) >= 0 && (tokenId as number) < vocabSize) return;
  throw invalid(
    param,
    `${param}: ${show(tokenId)} is not a token id of this model; they are whole numbers from 0 to ${String(vocabSize - 1)}`,
  );
}

function checkBoolean(param: string, value: unknown): boolean {
  if (typeof value === 'boolean') return value;
  throw invalid(param, `${param} must be true or false, got ${show(value)}`);
}

function optional(range: Range, value: unknown): number | undefined {
  return value === undefined ? undefined : inRange(range, value);
}

function inRange(range: Range, value: unknown): number {
  if (isInRange(range, value)) return value;
  throw invalid(range.param, `${range.param} must be ${describeRange(range)}, got ${show(value)}`);
}

function isInRange({ min, max, isOpen = false, isInteger = false }: Range, value: unknown): value is number {
  if (typeof value !== 'number' || !Number.isFinite(value) || (isInteger && !Number.isSafeInteger(value))) return false;
  return value <= max && (isOpen ? value > min : value >= min);
}

function describeRange({ min, max, isOpen = false, isInteger = false }: Range): string {
  const lower = isOpen ? `more than ${String(min)}` : `at least ${String(min)}`;
  return `a ${isInteger ? 'whole number' : 'number'}, ${lower} and at most ${String(max)}`;
}

function readTokenIds(file: string, value: unknown): readonly number[] {
  const tokenIds: readonly unknown[] = Array.isArray(value) ? value : [value];
  return tokenIds.map((tokenId) => {
    if (typeof tokenId === 'number' && Number.isSafeInteger(tokenId) && tokenId >= 0) return tokenId;
    throw unusable(file, 'eos_token_id', 'expected a token id or a list of them', tokenId);
  });
}

type Present<T> = { [K in keyof T]?: Exclude<T[K], undefined> };

function withoutUndefined<T extends object>(fields: T): Present<T> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as Present<T>;
}

/** A value of the caller's, short enough for a message. */
function show(value: unknown): string {
  if (typeof value === 'object' && value !== null) return Array.isArray(value) ? 'a list' : 'an object';
  const text = typeof value === 'string' ? JSON.stringify(value) : String(value);
  return text.length > 40 ? `${text.slice(0, 40)}…` : text;
}

function invalid(param: string, message: string): MoeError {
  return new MoeError('MOE_REQUEST_INVALID', message, { param });
}

function unusable(file: string, field: string, expected: string, value: unknown): MoeError {
  return new MoeError('MOE_CHECKPOINT_CONFIG', `${file}: ${field}: ${expected}, got ${show(value)}`, { file, field });
}
