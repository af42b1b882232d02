import { expect } from 'chai';
import { isMoeError } from '@moe-server/core';
import type { SamplingRequest } from '../src/sampling-params.js';
import { readGenerationDefaults, resolveSampling } from '../src/sampling-params.js';

const context = { vocabSize: 640, maxModelLen: 100, promptLength: 40 };
const none = { eosTokenIds: [] };

function thrown(action: () => unknown): { code: string; param: unknown; message: string } {
  try {
    action();
  } catch (error) {
    if (isMoeError(error)) return { code: error.code, param: error.details.param, message: error.message };
    throw error;
  }
  throw new Error('expected a MoeError');
}

describe('resolveSampling', () => {
  it("has OpenAI's defaults where neither caller nor model says anything", () => {
    expect(resolveSampling({}, none, context)).to.deep.equal({
      maxTokens: 60,
      minTokens: 0,
      temperature: 1,
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
    });
  });

  it("prefers the caller to the model's defaults", () => {
    const defaults = { temperature: 0.6, topK: 20, topP: 0.95, minP: 0.1, repetitionPenalty: 1.1, maxTokens: 30, eosTokenIds: [] };
    const fromModel = resolveSampling({}, defaults, context);
    expect([
      fromModel.temperature,
      fromModel.topK,
      fromModel.topP,
      fromModel.minP,
      fromModel.repetitionPenalty,
      fromModel.maxTokens,
    ]).to.deep.equal([0.6, 20, 0.95, 0.1, 1.1, 30]);
    const fromCaller = resolveSampling(
      { temperature: 0, topK: -1, topP: 1, minP: 0, repetitionPenalty: 1, maxTokens: 5 },
      defaults,
      context,
    );
    expect([fromCaller.temperature, fromCaller.topK, fromCaller.topP, fromCaller.maxTokens]).to.deep.equal([0, 0, 1, 5]);
  });

  const refused: readonly [SamplingRequest, string][] = [
    [{ temperature: -1 }, 'temperature'],
    [{ temperature: 3 }, 'temperature'],
    [{ temperature: Infinity }, 'temperature'],
    [{ temperature: NaN }, 'temperature'],
    [{ temperature: '0.5' as unknown as number }, 'temperature'],
    [{ topP: 0 }, 'top_p'],
    [{ topP: 1.1 }, 'top_p'],
    [{ topK: -2 }, 'top_k'],
    [{ topK: 1.5 }, 'top_k'],
    [{ minP: 2 }, 'min_p'],
    [{ minP: -0.1 }, 'min_p'],
    [{ repetitionPenalty: 0 }, 'repetition_penalty'],
    [{ repetitionPenalty: 1e-46 }, 'repetition_penalty'],
    [{ repetitionPenalty: 1e9 }, 'repetition_penalty'],
    [{ presencePenalty: 1e9 }, 'presence_penalty'],
    [{ frequencyPenalty: -1e9 }, 'frequency_penalty'],
    [{ maxTokens: 0 }, 'max_tokens'],
    [{ maxTokens: -1 }, 'max_tokens'],
    [{ maxTokens: 5, minTokens: 6 }, 'min_tokens'],
    [{ minTokens: -1 }, 'min_tokens'],
    [{ logprobs: 21 }, 'logprobs'],
    [{ logprobs: -1 }, 'logprobs'],
    [{ promptLogprobs: 21 }, 'prompt_logprobs'],
    [{ seed: 2 ** 63 }, 'seed'],
    [{ seed: 1.5 }, 'seed'],
    [{ logitBias: [[640, 1]] }, 'logit_bias'],
    [{ logitBias: [[-1, 1]] }, 'logit_bias'],
    [{ logitBias: [[1, 1e308]] }, 'logit_bias'],
    [{ logitBias: Array.from({ length: 641 }, (_, i) => [i % 640, 1] as const) }, 'logit_bias'],
    [{ stopTokenIds: [640] }, 'stop_token_ids'],
    [{ stopTokenIds: Array.from({ length: 129 }, () => 1) }, 'stop_token_ids'],
    [{ ignoreEos: 1 as unknown as boolean }, 'ignore_eos'],
  ];
  for (const [request, param] of refused) {
    it(`refuses ${JSON.stringify(request).slice(0, 50)}, naming ${param}`, () => {
      const error = thrown(() => resolveSampling(request, none, context));
      expect(error.code).to.equal('MOE_REQUEST_INVALID');
      expect(error.param).to.equal(param);
      expect(error.message).to.contain(param);
    });
  }

  it('says both numbers when prompt and answer are more than the context', () => {
    const error = thrown(() => resolveSampling({ maxTokens: 1e12 }, none, context));
    expect(error.code).to.equal('MOE_REQUEST_CONTEXT_LENGTH');
    expect(error.message).to.contain('1000000000000').and.to.contain('40').and.to.contain('100');
    expect(thrown(() => resolveSampling({}, none, { ...context, promptLength: 100 })).code).to.equal('MOE_REQUEST_CONTEXT_LENGTH');
  });

  it('allows max_tokens 0 only to score a prompt, also one that fills the context', () => {
    expect(resolveSampling({ maxTokens: 0, promptLogprobs: 0 }, none, { ...context, promptLength: 100 }).maxTokens).to.equal(0);
    const error = thrown(() => resolveSampling({ maxTokens: 0, promptLogprobs: 0 }, none, { ...context, promptLength: 101 }));
    expect(error.code).to.equal('MOE_REQUEST_CONTEXT_LENGTH');
  });
});

describe('readGenerationDefaults', () => {
  it('reads the fields that published files have', () => {
    const file = { bos_token_id: 1, do_sample: true, temperature: 0.6, top_k: 20, top_p: 0.95, eos_token_id: [595, 593], min_p: null };
    expect(readGenerationDefaults(file)).to.deep.equal({ temperature: 0.6, topK: 20, topP: 0.95, eosTokenIds: [595, 593] });
  });

  it('takes do_sample false as greedy', () => {
    expect(readGenerationDefaults({ do_sample: false, eos_token_id: 2 })).to.deep.equal({ temperature: 0, eosTokenIds: [2] });
  });

  it('falls back to the end token of config.json', () => {
    expect(readGenerationDefaults(undefined, 2)).to.deep.equal({ eosTokenIds: [2] });
    expect(readGenerationDefaults({}, [2, 3]).eosTokenIds).to.deep.equal([2, 3]);
    expect(readGenerationDefaults({}, null).eosTokenIds).to.deep.equal([]);
  });

  for (const [file, field] of [
    [{ top_p: 7 }, 'top_p'],
    [{ temperature: 'hot' }, 'temperature'],
    [{ eos_token_id: [1, -2] }, 'eos_token_id'],
    [[1], 'an object'],
  ] as const) {
    it(`refuses ${JSON.stringify(file)}, naming file and field`, () => {
      const error = thrown(() => readGenerationDefaults(file));
      expect(error.code).to.equal('MOE_CHECKPOINT_CONFIG');
      expect(error.message).to.contain('generation_config.json').and.to.contain(field);
    });
  }
});
