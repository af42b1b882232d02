import { expect } from 'chai';
import { describeModel } from '../../src/checkpoint/describe-model.js';
import type { Tensors } from './tiny-models.js';
import { bf16, removeTensors, tinyQwen3Moe, tinySizes, withCheckpoint } from './tiny-models.js';

describe('describeModel, prediction heads', () => {
  it('leaves one out that does not fit, saying why', async () => {
    const { config, tensors } = tinyQwen35();
    tensors['mtp.layers.0.self_attn.o_proj.weight'] = { dtype: 'U8', shape: [64, 64] };
    const { draftProblem, groups, linears } = await withCheckpoint({ config, tensors }, describeModel);
    expect(draftProblem).to.include('mtp.layers.0.self_attn.o_proj.weight');
    for (const { role } of [...groups, ...linears]) expect(role).to.equal('target');
  });

  it('takes plain tensors as such where an older exporter forgot to list them', async () => {
    const { config, tensors } = tinyQwen35();
    const quantization = { quant_method: 'modelopt', quant_algo: 'NVFP4', exclude_modules: ['model*', 'lm_head', 'mtp.layers*'] };
    const { draftProblem, linears } = await withCheckpoint(
      { config: { ...config, quantization_config: quantization }, tensors },
      describeModel,
    );
    expect(draftProblem).to.equal(undefined);
    expect(linears.find(({ name }) => name === 'mtp.fc')).to.include({ scheme: 'bf16', role: 'draft' });
  });

  it('does without one', async () => {
    const { config, tensors } = tinyQwen35();
    removeTensors(tensors, (name) => name.startsWith('mtp.'));
    const { draftProblem, groups } = await withCheckpoint({ config, tensors }, describeModel);
    expect(draftProblem).to.equal(undefined);
    expect(groups.map(({ role }) => role)).to.deep.equal(['target']);
  });
});

/** Qwen3.5-MoE of one full-attention layer, experts fused, with a prediction head. */
function tinyQwen35(): { readonly config: Record<string, unknown>; readonly tensors: Tensors } {
  const { hidden, intermediate, headDim, vocabulary } = tinySizes;
  const tensors: Tensors = {
    'model.language_model.embed_tokens.weight': bf16([vocabulary, hidden]),
    'lm_head.weight': bf16([vocabulary, hidden]),
    'mtp.fc.weight': bf16([hidden, 2 * hidden]),
  };
  for (const layer of ['model.language_model.layers.0', 'mtp.layers.0']) {
    tensors[`${layer}.self_attn.q_proj.weight`] = bf16([2 * 4 * headDim, hidden]);
    tensors[`${layer}.self_attn.k_proj.weight`] = bf16([2 * headDim, hidden]);
    tensors[`${layer}.self_attn.v_proj.weight`] = bf16([2 * headDim, hidden]);
    tensors[`${layer}.self_attn.o_proj.weight`] = bf16([hidden, 4 * headDim]);
    tensors[`${layer}.mlp.experts.gate_up_proj`] = bf16([2, 2 * intermediate, hidden]);
    tensors[`${layer}.mlp.experts.down_proj`] = bf16([2, hidden, intermediate]);
  }
  const { config } = tinyQwen3Moe();
  const { architectures, model_type: modelType, ...text } = config;
  expect([architectures, modelType]).to.deep.equal([['Qwen3MoeForCausalLM'], 'qwen3_moe']);
  return {
    config: {
      architectures: ['Qwen3_5MoeForConditionalGeneration'],
      model_type: 'qwen3_5_moe',
      text_config: { ...text, layer_types: ['full_attention'] },
    },
    tensors,
  };
}
