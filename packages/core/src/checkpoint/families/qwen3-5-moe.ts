import type { ConfigReader } from '../config-reader.js';
import { sane } from '../config-reader.js';
import type { ModelBuilder } from '../model-builder.js';
import type { Parts } from '../partition.js';
import type { DecoderSizes, LayerPlace } from './decoder-parts.js';
import {
  addAttention,
  addLinear,
  addLmHead,
  addMlp,
  findModelPrefix,
  readActivation,
  readDecoderSizes,
  readExpertCounts,
  softmaxRouting,
} from './decoder-parts.js';
import type { ModelFamily } from './family.js';

const usualFullAttentionInterval = 4;

/**
 * Qwen3.5 and 3.6 MoE: gated delta-rule attention in most layers and gated full attention in some, a gated shared expert, a prediction head. The
 * vision tower is left alone.
 */
export const qwen35Moe: ModelFamily = {
  modelTypes: ['qwen3_5_moe', 'qwen3_5_moe_text'],
  architectures: ['Qwen3_5MoeForConditionalGeneration', 'Qwen3_5MoeForCausalLM'],
  describe: (builder, config) => {
    const sizes = readDecoderSizes(config);
    const prefix = findModelPrefix(builder.checkpoint, ['model.language_model.', 'model.', 'language_model.model.']);
    const isFull = readLayerTypes(config, sizes.numLayers);
    for (let layerIndex = 0; layerIndex < sizes.numLayers; layerIndex++) {
      const place = { layer: `${prefix}layers.${String(layerIndex)}`, layerIndex, role: 'target' } as const;
      if (isFull(layerIndex)) addGatedAttention(builder, config, sizes, place);
      else addDeltaRule(builder, config, sizes, place);
      addMoe(builder, config, sizes, place);
    }
    addLmHead(builder, config, prefix, sizes);
    addPredictionHead(builder, config, sizes);
    return sizes.numLayers;
  },
};

function readLayerTypes(config: ConfigReader, numLayers: number): (layer: number) => boolean {
  const types = config.optionalStrings('layer_types');
  if (types === undefined) {
    const interval = config.integer('full_attention_interval', sane.layers, usualFullAttentionInterval);
    return (layer) => (layer + 1) % interval === 0;
  }
  if (types.length !== numLayers) throw config.error('layer_types', `one entry for each of ${String(numLayers)} layers`, types.length);
  const unknown = types.find((type) => type !== 'full_attention' && type !== 'linear_attention');
  if (unknown !== undefined) throw config.error('layer_types', '"full_attention" or "linear_attention"', unknown);
  return (layer) => types[layer] === 'full_attention';
}

function addGatedAttention(builder: ModelBuilder, config: ConfigReader, sizes: DecoderSizes, place: LayerPlace): void {
  const isGated = config.boolean('attn_output_gate', true);
  addAttention(builder, place, sizes, config.boolean('attention_bias', false), isGated ? 2 : 1);
}

function addDeltaRule(builder: ModelBuilder, config: ConfigReader, { hiddenSize }: DecoderSizes, place: LayerPlace): void {
  const module = `${place.layer}.linear_attn`;
  const numKeyHeads = config.integer('linear_num_key_heads', sane.heads);
  const numValueHeads = config.integer('linear_num_value_heads', sane.heads);
  if (numValueHeads % numKeyHeads !== 0) {
    throw config.error('linear_num_value_heads', `a multiple of linear_num_key_heads, which is ${String(numKeyHeads)}`, numValueHeads);
  }
  const keySize = numKeyHeads * config.integer('linear_key_head_dim', sane.headDim);
  const valueSize = numValueHeads * config.integer('linear_value_head_dim', sane.headDim);
  // A key head and its value heads stay together, so both numbers are cut alike.
  const heads: Parts = { field: 'linear_num_key_heads', count: numKeyHeads };
  addLinear(builder, `${module}.in_proj_qkv`, 2 * keySize + valueSize, hiddenSize, place, { outParts: heads });
  addLinear(builder, `${module}.in_proj_z`, valueSize, hiddenSize, place, { outParts: heads });
  addLinear(builder, `${module}.in_proj_b`, numValueHeads, hiddenSize, place, { outParts: heads });
  addLinear(builder, `${module}.in_proj_a`, numValueHeads, hiddenSize, place, { outParts: heads });
  addLinear(builder, `${module}.out_proj`, hiddenSize, valueSize, place, { inParts: heads });
}

function addMoe(builder: ModelBuilder, config: ConfigReader, { hiddenSize }: DecoderSizes, { layer, layerIndex, role }: LayerPlace): void {
  const sharedSize = config.integer('shared_expert_intermediate_size', { min: 0, max: sane.intermediateSize.max }, 0);
  if (sharedSize > 0)
    addMlp(builder, `${layer}.mlp.shared_expert`, hiddenSize, sharedSize, { layerIndex, role }, 'shared_expert_intermediate_size');
  builder.experts({
    name: `${layer}.mlp.experts`,
    layerIndex,
    role,
    hiddenSize,
    moeIntermediateSize: config.integer('moe_intermediate_size', sane.intermediateSize),
    ...readExpertCounts(config, ['num_experts', 'num_local_experts']),
    activation: readActivation(config),
    hasBias: false,
    routing: softmaxRouting(true),
  });
}

/** `mtp.*`: one full-attention layer, experts included; absent in many exports. */
function addPredictionHead(builder: ModelBuilder, config: ConfigReader, sizes: DecoderSizes): void {
  if (!builder.checkpoint.has('mtp.fc.weight')) return;
  const { hiddenSize, numLayers } = sizes;
  addLinear(builder, 'mtp.fc', hiddenSize, 2 * hiddenSize, { layerIndex: undefined, role: 'draft' });
  const numHeads = config.integer('mtp_num_hidden_layers', { min: 0, max: 64 }, 1);
  for (let i = 0; i < numHeads; i++) {
    const place = { layer: `mtp.layers.${String(i)}`, layerIndex: numLayers + i, role: 'draft' } as const;
    addGatedAttention(builder, config, sizes, place);
    addMoe(builder, config, sizes, place);
  }
}
