import type { ConfigReader } from '../config-reader.js';
import { sane } from '../config-reader.js';
import type { ModelBuilder } from '../model-builder.js';
import type { Parts } from '../partition.js';
import type { RoutingMethod } from '../../layer-spec.js';
import type { DecoderSizes, LayerPlace } from './decoder-parts.js';
import { addLinear, addLmHead, addMlp, readActivation, readDecoderSizes, readExpertCounts } from './decoder-parts.js';
import type { ModelFamily } from './family.js';

/**
 * DeepSeek-V3: multi-head latent attention, the first layers dense, sigmoid routing in groups with a correction bias, a shared expert. Prediction
 * heads are decoder layers behind the last one.
 */
export const deepseekV3: ModelFamily = {
  modelTypes: ['deepseek_v3'],
  architectures: ['DeepseekV3ForCausalLM'],
  describe: (builder, config) => {
    const sizes = readDecoderSizes(config);
    const { numLayers, hiddenSize } = sizes;
    for (let layerIndex = 0; layerIndex < numLayers; layerIndex++) {
      addLayer(builder, config, sizes, { layer: `model.layers.${String(layerIndex)}`, layerIndex, role: 'target' });
    }
    addLmHead(builder, config, 'model.', sizes);
    const numHeads = config.integer('num_nextn_predict_layers', { min: 0, max: 64 }, 0);
    for (let layerIndex = numLayers; layerIndex < numLayers + numHeads; layerIndex++) {
      const place = { layer: `model.layers.${String(layerIndex)}`, layerIndex, role: 'draft' } as const;
      // Exports that leave the prediction head out keep the number in config.json.
      if (!builder.checkpoint.has(`${place.layer}.eh_proj.weight`)) continue;
      addLinear(builder, `${place.layer}.eh_proj`, hiddenSize, 2 * hiddenSize, place);
      addLayer(builder, config, sizes, place);
      const head = `${place.layer}.shared_head.head`;
      if (builder.checkpoint.has(`${head}.weight`))
        addLinear(builder, head, sizes.vocabSize, hiddenSize, place, { outParts: { field: 'vocab_size', count: sizes.vocabSize } });
    }
    return numLayers;
  },
};

function addLayer(builder: ModelBuilder, config: ConfigReader, sizes: DecoderSizes, place: LayerPlace): void {
  addLatentAttention(builder, config, sizes, place);
  const { hiddenSize } = sizes;
  const { layer, layerIndex, role } = place;
  const firstRouted = config.integer('first_k_dense_replace', { min: 0, max: sane.layers.max }, 0);
  if (layerIndex < firstRouted || layerIndex % config.integer('moe_layer_freq', sane.layers, 1) !== 0) {
    addMlp(builder, `${layer}.mlp`, hiddenSize, config.integer('intermediate_size', sane.intermediateSize), place);
    return;
  }
  const moeIntermediateSize = config.integer('moe_intermediate_size', sane.intermediateSize);
  const numShared = config.integer('n_shared_experts', { min: 0, max: 64 }, 0);
  if (numShared > 0)
    addMlp(
      builder,
      `${layer}.mlp.shared_experts`,
      hiddenSize,
      numShared * moeIntermediateSize,
      place,
      'n_shared_experts · moe_intermediate_size',
    );
  const counts = readExpertCounts(config, ['n_routed_experts', 'num_local_experts']);
  builder.experts({
    name: `${layer}.mlp.experts`,
    layerIndex,
    role,
    hiddenSize,
    moeIntermediateSize,
    ...counts,
    activation: readActivation(config),
    hasBias: false,
    routing: readRouting(config, counts.numExperts, builder.checkpoint.has(`${layer}.mlp.gate.e_score_correction_bias`)),
  });
}

/**
 * Low-rank queries unless q_lora_rank is null; keys and values from one latent vector and one shared rotary part. Tensor parallel shares the
 * heads out; what makes the latent vectors lies whole on every rank.
 */
function addLatentAttention(builder: ModelBuilder, config: ConfigReader, { hiddenSize, numHeads }: DecoderSizes, place: LayerPlace): void {
  const module = `${place.layer}.self_attn`;
  const nope = config.integer('qk_nope_head_dim', sane.headDim);
  const rope = config.integer('qk_rope_head_dim', sane.headDim);
  const value = config.integer('v_head_dim', sane.headDim);
  const kvRank = config.integer('kv_lora_rank', sane.hiddenSize);
  const queryRank = config.optionalInteger('q_lora_rank', sane.hiddenSize);
  const hasBias = config.boolean('attention_bias', false);
  const heads: Parts = { field: 'num_attention_heads', count: numHeads };
  if (queryRank === undefined) {
    addLinear(builder, `${module}.q_proj`, numHeads * (nope + rope), hiddenSize, place, { outParts: heads });
  } else {
    addLinear(builder, `${module}.q_a_proj`, queryRank, hiddenSize, place, { hasBias });
    addLinear(builder, `${module}.q_b_proj`, numHeads * (nope + rope), queryRank, place, { outParts: heads });
  }
  // A cache of this attention holds the latent vector and the rotary part; keys and values come out of it by kv_b_proj when they are used.
  addLinear(builder, `${module}.kv_a_proj_with_mqa`, kvRank + rope, hiddenSize, place, { hasBias, isCached: true });
  addLinear(builder, `${module}.kv_b_proj`, numHeads * (nope + value), kvRank, place, { outParts: heads });
  addLinear(builder, `${module}.o_proj`, hiddenSize, numHeads * value, place, { hasBias, inParts: heads });
}

function readRouting(config: ConfigReader, numExperts: number, hasCorrectionBias: boolean): RoutingMethod {
  const score = config.string('scoring_func', 'sigmoid');
  if (score !== 'sigmoid' && score !== 'softmax') throw config.error('scoring_func', '"sigmoid" or "softmax"', score);
  const numGroups = config.integer('n_group', sane.experts, 1);
  const topkGroups = config.integer('topk_group', sane.experts, numGroups);
  if (numExperts % numGroups !== 0)
    throw config.error('n_group', `a divisor of n_routed_experts, which is ${String(numExperts)}`, numGroups);
  if (topkGroups > numGroups) throw config.error('topk_group', `at most n_group, which is ${String(numGroups)}`, topkGroups);
  return {
    score,
    order: 'score-first',
    renormalize: config.boolean('norm_topk_prob', true),
    numGroups,
    topkGroups,
    hasCorrectionBias,
    hasRouterBias: false,
    scalingFactor: config.number('routed_scaling_factor', 1),
  };
}
