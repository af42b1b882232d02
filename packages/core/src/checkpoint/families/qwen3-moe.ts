import { sane } from '../config-reader.js';
import { addAttention, addLmHead, addMlp, readActivation, readDecoderSizes, readExpertCounts, softmaxRouting } from './decoder-parts.js';
import type { ModelFamily } from './family.js';

/** Qwen3-MoE: every layer routed, unless mlp_only_layers or decoder_sparse_step say otherwise. */
export const qwen3Moe: ModelFamily = {
  modelTypes: ['qwen3_moe'],
  architectures: ['Qwen3MoeForCausalLM'],
  describe: (builder, config) => {
    const sizes = readDecoderSizes(config);
    const counts = readExpertCounts(config, ['num_experts', 'num_local_experts']);
    const moeIntermediateSize = config.integer('moe_intermediate_size', sane.intermediateSize);
    const denseLayers = new Set(config.integers('mlp_only_layers'));
    const sparseStep = config.integer('decoder_sparse_step', sane.layers, 1);
    const activation = readActivation(config);
    const routing = softmaxRouting(config.boolean('norm_topk_prob', false));
    const hasBias = config.boolean('attention_bias', false);
    for (let layerIndex = 0; layerIndex < sizes.numLayers; layerIndex++) {
      const place = { layer: `model.layers.${String(layerIndex)}`, layerIndex, role: 'target' } as const;
      addAttention(builder, place, sizes, hasBias);
      if (denseLayers.has(layerIndex) || (layerIndex + 1) % sparseStep !== 0) {
        addMlp(builder, `${place.layer}.mlp`, sizes.hiddenSize, config.integer('intermediate_size', sane.intermediateSize), place);
      } else {
        builder.experts({
          name: `${place.layer}.mlp.experts`,
          layerIndex,
          role: place.role,
          hiddenSize: sizes.hiddenSize,
          moeIntermediateSize,
          ...counts,
          activation,
          hasBias: false,
          routing,
        });
      }
    }
    addLmHead(builder, config, 'model.', sizes);
    return sizes.numLayers;
  },
};
