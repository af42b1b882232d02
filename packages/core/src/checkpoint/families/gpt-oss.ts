import { sane } from '../config-reader.js';
import { addAttention, addLmHead, readDecoderSizes, readExpertCounts, softmaxRouting } from './decoder-parts.js';
import type { ModelFamily } from './family.js';

/** Fixed in the model's code, not in config.json: sigmoid(1.702·g) approximates the normal distribution's. */
const swigluAlpha = 1.702;
const usualSwigluLimit = 7;

/** gpt-oss: biases everywhere, clamped swiglu, softmax over the chosen experts only. */
export const gptOss: ModelFamily = {
  modelTypes: ['gpt_oss'],
  architectures: ['GptOssForCausalLM'],
  describe: (builder, config) => {
    const sizes = readDecoderSizes(config);
    const counts = readExpertCounts(config, ['num_local_experts', 'num_experts'], ['num_experts_per_tok', 'experts_per_token']);
    const moeIntermediateSize = config.integer('intermediate_size', sane.intermediateSize);
    const limit = config.number('swiglu_limit', usualSwigluLimit);
    const hasBias = config.boolean('attention_bias', true);
    for (let layerIndex = 0; layerIndex < sizes.numLayers; layerIndex++) {
      const place = { layer: `model.layers.${String(layerIndex)}`, layerIndex, role: 'target' } as const;
      addAttention(builder, place, sizes, hasBias);
      builder.experts({
        name: `${place.layer}.mlp.experts`,
        layerIndex,
        role: place.role,
        hiddenSize: sizes.hiddenSize,
        moeIntermediateSize,
        widthField: 'intermediate_size',
        ...counts,
        activation: { type: 'swiglu', alpha: swigluAlpha, limit },
        hasBias: true,
        routing: { ...softmaxRouting(false), order: 'topk-first', hasRouterBias: true },
      });
    }
    addLmHead(builder, config, 'model.', sizes);
    return sizes.numLayers;
  },
};
