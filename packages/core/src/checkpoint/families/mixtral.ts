import { sane } from '../config-reader.js';
import { addAttention, addLmHead, readActivation, readDecoderSizes, readExpertCounts, softmaxRouting } from './decoder-parts.js';
import type { ModelFamily } from './family.js';

/** Mixtral: experts as wide as intermediate_size says, w1 = gate, w3 = up, w2 = down. */
export const mixtral: ModelFamily = {
  modelTypes: ['mixtral'],
  architectures: ['MixtralForCausalLM'],
  describe: (builder, config) => {
    const sizes = readDecoderSizes(config);
    const counts = readExpertCounts(config, ['num_local_experts', 'num_experts']);
    const moeIntermediateSize = config.integer('intermediate_size', sane.intermediateSize);
    const activation = readActivation(config);
    for (let layerIndex = 0; layerIndex < sizes.numLayers; layerIndex++) {
      const place = { layer: `model.layers.${String(layerIndex)}`, layerIndex, role: 'target' } as const;
      addAttention(builder, place, sizes, false);
      builder.experts({
        name: `${place.layer}.block_sparse_moe.experts`,
        layerIndex,
        role: place.role,
        hiddenSize: sizes.hiddenSize,
        moeIntermediateSize,
        widthField: 'intermediate_size',
        ...counts,
        activation,
        hasBias: false,
        routing: softmaxRouting(true),
      });
    }
    addLmHead(builder, config, 'model.', sizes);
    return sizes.numLayers;
  },
};
