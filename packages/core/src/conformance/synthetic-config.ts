import { expertScheme, layerLinears } from './synthetic-model.js';
import type { SyntheticModel, SyntheticScheme } from './synthetic-model.js';

/** config.json without quantization, with the keys that published Qwen3-MoE models have. */
export function modelConfig(model: SyntheticModel): Record<string, unknown> {
  return {
    architectures: ['Qwen3MoeForCausalLM'],
    attention_bias: false,
    attention_dropout: 0,
    bos_token_id: 0,
    decoder_sparse_step: 1,
    eos_token_id: 1,
    head_dim: model.headDim,
    hidden_act: 'silu',
    hidden_size: model.hiddenSize,
    intermediate_size: 3 * model.hiddenSize,
    max_position_embeddings: model.maxPositions ?? 4096,
    max_window_layers: model.numLayers,
    mlp_only_layers: [],
    model_type: 'qwen3_moe',
    moe_intermediate_size: model.moeIntermediateSize,
    norm_topk_prob: true,
    num_attention_heads: model.numHeads,
    num_experts: model.numExperts,
    num_experts_per_tok: model.topK,
    num_hidden_layers: model.numLayers,
    num_key_value_heads: model.numKvHeads,
    output_router_logits: false,
    rms_norm_eps: 1e-6,
    rope_scaling: null,
    rope_theta: 1e6,
    router_aux_loss_coef: 0.001,
    sliding_window: null,
    tie_word_embeddings: model.tieWordEmbeddings ?? false,
    torch_dtype: 'bfloat16',
    use_cache: true,
    use_sliding_window: false,
    vocab_size: model.vocabSize,
  };
}

const algorithms: Readonly<Record<SyntheticScheme, { readonly quant_algo: string; readonly group_size?: number } | undefined>> = {
  'nvfp4.w4a4': { quant_algo: 'NVFP4', group_size: 16 },
  'nvfp4.w4a16': { quant_algo: 'W4A16_NVFP4', group_size: 16 },
  'fp8.tensor.static': { quant_algo: 'FP8' },
  bf16: undefined,
};

/**
 * The modelopt quantization of a model, in both places where exports have it: `quantization_config` of config.json and hf_quant_config.json.
 * Mixed models list every quantized module; a model without any gets neither.
 */
export function quantizationConfigs(model: SyntheticModel): { readonly inConfig: unknown; readonly inOwnFile: unknown } {
  const layers = Array.from({ length: model.numLayers }, (_, i) => i);
  const kvCache = model.fp8KvCache === true;
  const unquantized = ['lm_head', ...layers.map((i) => `model.layers.${String(i)}.mlp.gate`)];
  const schemes = new Set([model.attention ?? 'bf16', ...layers.map((i) => expertScheme(model, i))]);
  const [only] = schemes;
  if (only === 'bf16' && schemes.size === 1) return { inConfig: undefined, inOwnFile: undefined };
  const quantizedLayers: Record<string, unknown> = {};
  for (const i of layers) {
    for (const { name, scheme } of layerLinears(model, i)) {
      if (algorithms[scheme] !== undefined) quantizedLayers[name] = algorithms[scheme];
    }
  }
  const uniform = schemes.size === 1 && only !== undefined ? algorithms[only] : undefined;
  const algorithm = uniform ?? { quant_algo: 'MIXED_PRECISION', quantized_layers: quantizedLayers };
  const producer = { name: 'modelopt', version: '0.45.0' };
  return {
    inConfig: {
      ...algorithm,
      ignore: unquantized,
      producer,
      quant_method: 'modelopt',
      ...(kvCache ? { kv_cache_scheme: { dynamic: false, num_bits: 8, type: 'float' } } : {}),
    },
    inOwnFile: { producer, quantization: { ...algorithm, kv_cache_quant_algo: kvCache ? 'FP8' : null, exclude_modules: unquantized } },
  };
}
