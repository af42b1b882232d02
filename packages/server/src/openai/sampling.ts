import { resolveSampling } from '@moe-server/engine';
import type { SamplingParams } from '@moe-server/engine';
import type { ModelInfo } from '../engine/engine-protocol.js';
import type { SamplingFields } from './wire-types.js';

/** Settings of one request that depend on the endpoint. */
export interface SamplingExtras {
  /** Undefined: the model's default, or what is left of the context. */
  readonly maxTokens: number | undefined;
  /** Alternatives per generated token; undefined = no log-probabilities. */
  readonly logprobs: number | undefined;
  readonly promptLogprobs: number | undefined;
}

/**
 * Wire fields to the engine's parameters. What a request leaves out comes from the model's generation_config.json, then from the
 * OpenAI API's defaults.
 *
 * @throws {MoeError} MOE_REQUEST_INVALID where fields contradict each other or the vocabulary; MOE_REQUEST_CONTEXT_LENGTH with both
 * numbers when prompt and answer are longer than the context.
 */
export function toSamplingParams(fields: SamplingFields, extras: SamplingExtras, promptLength: number, model: ModelInfo): SamplingParams {
  const request = {
    ...extras,
    minTokens: fields.min_tokens,
    temperature: fields.temperature,
    topK: fields.top_k,
    topP: fields.top_p,
    minP: fields.min_p,
    repetitionPenalty: fields.repetition_penalty,
    presencePenalty: fields.presence_penalty,
    frequencyPenalty: fields.frequency_penalty,
    logitBias: Object.entries(fields.logit_bias ?? {}).map(([tokenId, bias]): readonly [number, number] => [Number(tokenId), bias]),
    seed: fields.seed,
    stopTokenIds: fields.stop_token_ids,
    ignoreEos: fields.ignore_eos,
  };
  const { vocabSize, maxModelLen, generationDefaults } = model;
  return resolveSampling(request, generationDefaults, { vocabSize, maxModelLen, promptLength });
}

/** With `n` > 1 and a seed every choice needs one of its own, or all would be the same. */
export function seedOfChoice(sampling: SamplingParams, choice: number): SamplingParams {
  return sampling.seed === undefined || choice === 0 ? sampling : { ...sampling, seed: sampling.seed + choice };
}
