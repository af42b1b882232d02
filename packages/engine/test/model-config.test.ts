import { expect } from 'chai';
import { MoeError } from '@moe-server/core';
import { parseModelConfig } from '../src/model-config.js';

const qwen = {
  architectures: ['Qwen3MoeForCausalLM'],
  attention_bias: false,
  eos_token_id: 7,
  head_dim: 64,
  hidden_act: 'silu',
  hidden_size: 256,
  intermediate_size: 512,
  max_position_embeddings: 4096,
  mlp_only_layers: [],
  num_attention_heads: 8,
  num_hidden_layers: 4,
  num_key_value_heads: 2,
  rms_norm_eps: 1e-6,
  rope_scaling: null,
  rope_theta: 1_000_000,
  sliding_window: null,
  tie_word_embeddings: true,
  use_sliding_window: false,
  vocab_size: 640,
};

const mixtral = {
  architectures: ['MixtralForCausalLM'],
  hidden_size: 256,
  intermediate_size: 128,
  max_position_embeddings: 4096,
  num_attention_heads: 4,
  num_hidden_layers: 2,
  num_key_value_heads: 2,
  vocab_size: 640,
};

function failure(config: Record<string, unknown>): MoeError {
  try {
    parseModelConfig(config, undefined);
  } catch (error) {
    if (error instanceof MoeError) return error;
    throw error;
  }
  throw new Error('nothing was refused');
}

describe('parseModelConfig', () => {
  it('reads a Qwen3-MoE model', () => {
    const config = parseModelConfig(qwen, undefined);
    expect(config).to.deep.include({ numHeads: 8, numKvHeads: 2, headDim: 64, hasQkNorm: true, slidingWindow: 0, denseLayers: [] });
    expect(config.rope).to.deep.equal({ theta: 1_000_000, scaling: { type: 'default' } });
  });

  it('reads a Mixtral model, with the defaults of its family', () => {
    const config = parseModelConfig({ ...mixtral, sliding_window: 128 }, undefined);
    expect(config).to.deep.include({ headDim: 64, hasQkNorm: false, slidingWindow: 128, rmsNormEps: 1e-5, eosTokenIds: [] });
    expect(config.rope.theta).to.equal(1_000_000);
  });

  it('finds the dense layers', () => {
    expect(parseModelConfig({ ...qwen, mlp_only_layers: [1] }, undefined).denseLayers).to.deep.equal([1]);
    expect(parseModelConfig({ ...qwen, decoder_sparse_step: 2 }, undefined).denseLayers).to.deep.equal([0, 2]);
  });

  it('takes end tokens and sampling defaults from generation_config.json', () => {
    const config = parseModelConfig(qwen, { do_sample: true, eos_token_id: [5, 6], temperature: 0.6, top_k: 20, top_p: 0.95 });
    expect(config.eosTokenIds).to.deep.equal([5, 6]);
    expect(config.samplingDefaults).to.deep.include({ temperature: 0.6, topK: 20, topP: 0.95, minP: undefined });
    expect(parseModelConfig(qwen, undefined).eosTokenIds).to.deep.equal([7]);
  });

  it('takes do_sample false for temperature 0', () => {
    expect(parseModelConfig(qwen, { do_sample: false, temperature: 0.6 }).samplingDefaults.temperature).to.equal(0);
  });

  it('reads rotary scaling in the old and in the new place', () => {
    const linear = { type: 'linear', factor: 2 };
    const old = parseModelConfig({ ...qwen, rope_scaling: linear }, undefined);
    const { rope_theta: theta, ...rest } = qwen;
    const recent = parseModelConfig({ ...rest, rope_parameters: { rope_theta: theta, rope_type: 'linear', factor: 2 } }, undefined);
    expect(old.rope).to.deep.equal({ theta: 1_000_000, scaling: linear });
    expect(recent.rope).to.deep.equal(old.rope);
    expect(old.maxContextLength).to.equal(8192);
  });

  it('fills in what YaRN leaves out', () => {
    const scaling = { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 2048 };
    const config = parseModelConfig({ ...qwen, rope_scaling: scaling }, undefined);
    expect(config.rope.scaling).to.deep.equal({
      type: 'yarn',
      factor: 4,
      originalMaxPositions: 2048,
      betaFast: 32,
      betaSlow: 1,
      truncate: true,
      attentionFactor: 0.1 * Math.log(4) + 1,
    });
    expect(config.maxContextLength).to.equal(8192);
  });

  it('goes by model_type where no architecture is named', () => {
    expect(parseModelConfig({ ...mixtral, architectures: null, model_type: 'mixtral' }, undefined).architecture).to.equal(
      'MixtralForCausalLM',
    );
  });

  it('names the architecture that cannot run, and those that can', () => {
    const error = failure({ ...qwen, architectures: ['GptOssForCausalLM'] });
    expect(error.code).to.equal('MOE_UNSUPPORTED_ARCHITECTURE');
    expect(error.message).to.contain('GptOssForCausalLM').and.to.contain('Qwen3MoeForCausalLM').and.to.contain('MixtralForCausalLM');
  });

  for (const [what, change] of [
    ['attention biases', { attention_bias: true }],
    ['other activations', { hidden_act: 'gelu' }],
    ['dynamic rotary scaling', { rope_scaling: { rope_type: 'dynamic', factor: 2 } }],
    ['partial rotary embeddings', { partial_rotary_factor: 0.5 }],
  ] as const) {
    it(`refuses ${what} by the field's name`, () => {
      const error = failure({ ...qwen, ...change });
      expect(error.code).to.equal('MOE_UNSUPPORTED_ARCHITECTURE');
      expect(error.message).to.match(/"(attention_bias|hidden_act|rope_type|partial_rotary_factor)"/);
    });
  }

  for (const [field, value] of [
    ['hidden_size', '256'],
    ['num_hidden_layers', 0],
    ['vocab_size', undefined],
    ['num_key_value_heads', 3],
    ['rope_theta', 'big'],
    ['rope_theta', 0],
    ['rms_norm_eps', -1e-6],
    ['eos_token_id', 640],
    ['eos_token_id', [7, 640]],
    ['use_sliding_window', 1],
    ['architectures', 'Qwen3MoeForCausalLM'],
  ] as const) {
    it(`refuses ${field} = ${JSON.stringify(value)} naming field and file`, () => {
      const error = failure({ ...qwen, [field]: value });
      expect(error.code).to.equal('MOE_CHECKPOINT_CONFIG');
      expect(error.message).to.contain(field).and.to.contain('config.json');
    });
  }
});
