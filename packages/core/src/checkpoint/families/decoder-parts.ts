import type { Checkpoint } from '../checkpoint.js';
import type { ConfigReader } from '../config-reader.js';
import { sane } from '../config-reader.js';
import type { ModelBuilder } from '../model-builder.js';
import type { Parts } from '../partition.js';
import type { Activation, LayerRole, RoutingMethod } from '../../layer-spec.js';

/** Sizes that every decoder has. */
export interface DecoderSizes {
  readonly hiddenSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly vocabSize: number;
}

/** @throws {MoeError} MOE_CHECKPOINT_CONFIG */
export function readDecoderSizes(config: ConfigReader): DecoderSizes {
  const hiddenSize = config.integer('hidden_size', sane.hiddenSize);
  const numHeads = config.integer('num_attention_heads', sane.heads);
  const numKvHeads = config.integer('num_key_value_heads', sane.heads, numHeads);
  if (numHeads % numKvHeads !== 0) {
    throw config.error('num_key_value_heads', `a divisor of num_attention_heads, which is ${String(numHeads)}`, numKvHeads);
  }
  if (!config.has('head_dim') && hiddenSize % numHeads !== 0) {
    throw config.error(
      'num_attention_heads',
      `a divisor of hidden_size, which is ${String(hiddenSize)}, as head_dim is not given`,
      numHeads,
    );
  }
  return {
    hiddenSize,
    numHeads,
    numKvHeads,
    headDim: config.integer('head_dim', sane.headDim, hiddenSize / numHeads),
    numLayers: config.integer('num_hidden_layers', sane.layers),
    vocabSize: config.integer('vocab_size', sane.vocabulary),
  };
}

/**
 * Number of experts and of those chosen per token.
 *
 * @throws {MoeError} MOE_CHECKPOINT_CONFIG
 */
export function readExpertCounts(
  config: ConfigReader,
  expertsFields: readonly string[],
  topKFields: readonly string[] = ['num_experts_per_tok'],
): { readonly numExperts: number; readonly topK: number } {
  const numExperts = config.firstInteger(expertsFields, sane.experts);
  const topK = config.firstInteger(topKFields, sane.experts);
  if (topK > numExperts) throw config.error(topKFields[0] ?? '', `at most the number of experts, which is ${String(numExperts)}`, topK);
  return { numExperts, topK };
}

/** `hidden_act`, which every family but gpt-oss has as silu. */
export function readActivation(config: ConfigReader): Activation {
  const name = config.string('hidden_act', 'silu');
  return name === 'silu' || name === 'swish' ? { type: 'silu' } : { type: 'other', name };
}

/** softmax over all experts, the k best of them, without groups or biases. */
export function softmaxRouting(renormalize: boolean): RoutingMethod {
  return {
    score: 'softmax',
    order: 'score-first',
    renormalize,
    numGroups: 1,
    topkGroups: 1,
    hasCorrectionBias: false,
    hasRouterBias: false,
    scalingFactor: 1,
  };
}

/** What precedes `layers.0`: `model.`, or a longer one in multimodal files. */
export function findModelPrefix(checkpoint: Checkpoint, candidates: readonly string[]): string {
  return candidates.find((prefix) => checkpoint.has(`${prefix}embed_tokens.weight`)) ?? candidates[0] ?? '';
}

export interface LayerPlace {
  /** The layer's name, without a dot at the end. */
  readonly layer: string;
  readonly layerIndex: number;
  readonly role: LayerRole;
}

/**
 * q, k and v as one linear where their schemes agree, and o.
 *
 * @param queryFactor - 2 where q_proj holds a gate beside each query.
 */
export function addAttention(
  builder: ModelBuilder,
  { layer, layerIndex, role }: LayerPlace,
  { hiddenSize, numHeads, numKvHeads, headDim }: DecoderSizes,
  hasBias: boolean,
  queryFactor = 1,
): void {
  const module = `${layer}.self_attn`;
  const heads: Parts = { field: 'num_attention_heads', count: numHeads };
  const kvHeads: Parts = { field: 'num_key_value_heads', count: numKvHeads, mayRepeat: true };
  builder.linear({
    name: `${module}.qkv_proj`,
    modules: [
      { name: `${module}.q_proj`, outFeatures: queryFactor * numHeads * headDim, outParts: heads },
      { name: `${module}.k_proj`, outFeatures: numKvHeads * headDim, outParts: kvHeads, isCached: true },
      { name: `${module}.v_proj`, outFeatures: numKvHeads * headDim, outParts: kvHeads, isCached: true },
    ],
    inFeatures: hiddenSize,
    layerIndex,
    role,
    hasBias,
  });
  addLinear(builder, `${module}.o_proj`, hiddenSize, numHeads * headDim, { layerIndex, role }, { hasBias, inParts: heads });
}

/**
 * A dense MLP or a shared expert: gate and up as one linear where their schemes agree, and down.
 *
 * @param widthField - the field of config.json that `intermediateSize` comes from.
 */
export function addMlp(
  builder: ModelBuilder,
  module: string,
  hiddenSize: number,
  intermediateSize: number,
  { layerIndex, role }: Pick<LayerPlace, 'layerIndex' | 'role'>,
  widthField = 'intermediate_size',
): void {
  const width: Parts = { field: widthField, count: intermediateSize };
  builder.linear({
    name: `${module}.gate_up_proj`,
    modules: [
      { name: `${module}.gate_proj`, outFeatures: intermediateSize, outParts: width },
      { name: `${module}.up_proj`, outFeatures: intermediateSize, outParts: width },
    ],
    inFeatures: hiddenSize,
    layerIndex,
    role,
    hasBias: false,
  });
  addLinear(builder, `${module}.down_proj`, hiddenSize, intermediateSize, { layerIndex, role }, { inParts: width });
}

/** What tensor parallel may cut (neither = whole on every rank) and what is cached, see `LinearDescription` and `ModuleDescription`. */
export interface LinearOptions {
  readonly hasBias?: boolean;
  readonly inParts?: Parts;
  readonly outParts?: Parts;
  readonly isCached?: boolean;
}

/** A linear of one module. */
export function addLinear(
  builder: ModelBuilder,
  name: string,
  outFeatures: number,
  inFeatures: number,
  { layerIndex, role }: { readonly layerIndex: number | undefined; readonly role: LayerRole },
  { hasBias = false, inParts, outParts, isCached = false }: LinearOptions = {},
): void {
  builder.linear({
    name,
    modules: [{ name, outFeatures, ...(outParts === undefined ? {} : { outParts }), isCached }],
    inFeatures,
    ...(inParts === undefined ? {} : { inParts }),
    layerIndex,
    role,
    hasBias,
  });
}

/** The vocabulary projection; where embeddings are tied and the file holds no head, the embedding serves as one. */
export function addLmHead(builder: ModelBuilder, config: ConfigReader, prefix: string, { hiddenSize, vocabSize }: DecoderSizes): void {
  const isStored = ['weight', 'weight_packed'].some((suffix) => builder.checkpoint.has(`lm_head.${suffix}`));
  const isTied = config.boolean('tie_word_embeddings', false) && !isStored;
  builder.linear({
    name: 'lm_head',
    modules: [
      { name: isTied ? `${prefix}embed_tokens` : 'lm_head', outFeatures: vocabSize, outParts: { field: 'vocab_size', count: vocabSize } },
    ],
    inFeatures: hiddenSize,
    layerIndex: undefined,
    role: 'target',
    hasBias: false,
    isEmbedding: isTied,
  });
}
