import type { SparseModel, SparseTensor } from './sparse-checkpoint.js';

/** How a module is stored, as modelopt and Hugging Face export it; `nvfp4` serves W4A4 and W4A16 alike. */
export type SparseStorage = 'bf16' | 'nvfp4' | 'fp8' | 'fp8-block';

/** Gathers the tensors of a model, module by module. */
class Tensors {
  readonly all: SparseTensor[] = [];
  /** Quantized modules, for `quantized_layers`. */
  readonly quantized: Record<string, Readonly<Record<string, unknown>>> = {};

  plain(name: string, ...shape: readonly number[]): void {
    this.all.push({ name, dtype: 'BF16', shape });
  }

  module(name: string, storage: SparseStorage, rows: number, columns: number): void {
    const add = (suffix: string, dtype: SparseTensor['dtype'], ...shape: readonly number[]): void => {
      this.all.push({ name: `${name}.${suffix}`, dtype, shape });
    };
    switch (storage) {
      case 'bf16':
        add('weight', 'BF16', rows, columns);
        break;
      case 'nvfp4':
        add('weight', 'U8', rows, columns / 2);
        add('weight_scale', 'F8_E4M3', rows, columns / 16);
        add('weight_scale_2', 'F32');
        add('input_scale', 'F32');
        this.quantized[name] = { quant_algo: 'W4A16_NVFP4', group_size: 16 };
        break;
      case 'fp8':
        add('weight', 'F8_E4M3', rows, columns);
        add('weight_scale', 'F32');
        add('input_scale', 'F32');
        this.quantized[name] = { quant_algo: 'FP8' };
        break;
      case 'fp8-block':
        add('weight', 'F8_E4M3', rows, columns);
        add('weight_scale_inv', 'F32', Math.ceil(rows / 128), Math.ceil(columns / 128));
        break;
    }
  }

  mlp(name: string, storage: SparseStorage, hidden: number, intermediate: number): void {
    this.module(`${name}.gate_proj`, storage, intermediate, hidden);
    this.module(`${name}.up_proj`, storage, intermediate, hidden);
    this.module(`${name}.down_proj`, storage, hidden, intermediate);
  }

  experts(name: string, storage: SparseStorage, count: number, hidden: number, intermediate: number): void {
    for (let expert = 0; expert < count; expert++) this.mlp(`${name}.experts.${String(expert)}`, storage, hidden, intermediate);
  }
}

/**
 * The shape of a Qwen3.5 or 3.6 MoE of 35 billion parameters, 3 active, exported by modelopt as MIXED_PRECISION: NVFP4 experts and FP8 ones in the
 * last layers, FP8 attention, a BF16 prediction head; every expert's tensors apart, every quantized module listed.
 *
 * @param numLayers - fewer make a smaller file of the same make.
 */
export function mixedQwen35Moe({ numLayers = 40, numExperts = 256 }: { numLayers?: number; numExperts?: number } = {}): SparseModel {
  const hidden = 2048;
  const intermediate = 512;
  const vocabulary = 248_320;
  const heads = { query: 16, keyValue: 2, size: 256 };
  const delta = { keyHeads: 16, valueHeads: 32, headSize: 128 };
  const numFp8Layers = Math.ceil(numLayers / 8);
  const tensors = new Tensors();
  const moe = (layer: string, experts: SparseStorage): void => {
    tensors.plain(`${layer}.mlp.gate.weight`, numExperts, hidden);
    tensors.plain(`${layer}.mlp.shared_expert_gate.weight`, 1, hidden);
    tensors.mlp(`${layer}.mlp.shared_expert`, experts, hidden, intermediate);
    tensors.experts(`${layer}.mlp`, experts, numExperts, hidden, intermediate);
    for (const norm of ['input_layernorm', 'post_attention_layernorm']) tensors.plain(`${layer}.${norm}.weight`, hidden);
  };
  const attention = (layer: string, storage: SparseStorage): void => {
    const module = `${layer}.self_attn`;
    tensors.module(`${module}.q_proj`, storage, 2 * heads.query * heads.size, hidden);
    tensors.module(`${module}.k_proj`, storage, heads.keyValue * heads.size, hidden);
    tensors.module(`${module}.v_proj`, storage, heads.keyValue * heads.size, hidden);
    tensors.module(`${module}.o_proj`, storage, hidden, heads.query * heads.size);
    for (const norm of ['q_norm', 'k_norm']) tensors.plain(`${module}.${norm}.weight`, heads.size);
  };
  const deltaRule = (layer: string): void => {
    const module = `${layer}.linear_attn`;
    const [keySize, valueSize] = [delta.keyHeads * delta.headSize, delta.valueHeads * delta.headSize];
    tensors.module(`${module}.in_proj_qkv`, 'fp8', 2 * keySize + valueSize, hidden);
    tensors.module(`${module}.in_proj_z`, 'fp8', valueSize, hidden);
    tensors.module(`${module}.in_proj_b`, 'bf16', delta.valueHeads, hidden);
    tensors.module(`${module}.in_proj_a`, 'bf16', delta.valueHeads, hidden);
    tensors.module(`${module}.out_proj`, 'fp8', hidden, valueSize);
    tensors.plain(`${module}.conv1d.weight`, 2 * keySize + valueSize, 1, 4);
    for (const name of ['A_log', 'dt_bias']) tensors.plain(`${module}.${name}`, delta.valueHeads);
    tensors.plain(`${module}.norm.weight`, delta.headSize);
  };
  tensors.module('lm_head', 'nvfp4', vocabulary, hidden);
  tensors.plain('model.language_model.embed_tokens.weight', vocabulary, hidden);
  tensors.plain('model.language_model.norm.weight', hidden);
  for (let index = 0; index < numLayers; index++) {
    const layer = `model.language_model.layers.${String(index)}`;
    if (index % 4 === 3) attention(layer, 'fp8');
    else deltaRule(layer);
    moe(layer, index < numLayers - numFp8Layers ? 'nvfp4' : 'fp8');
  }
  tensors.module('mtp.fc', 'bf16', hidden, 2 * hidden);
  for (const norm of ['norm', 'pre_fc_norm_embedding', 'pre_fc_norm_hidden']) tensors.plain(`mtp.${norm}.weight`, hidden);
  attention('mtp.layers.0', 'bf16');
  moe('mtp.layers.0', 'bf16');
  const config = {
    architectures: ['Qwen3_5MoeForConditionalGeneration'],
    model_type: 'qwen3_5_moe',
    text_config: {
      model_type: 'qwen3_5_moe_text',
      hidden_size: hidden,
      num_hidden_layers: numLayers,
      num_attention_heads: heads.query,
      num_key_value_heads: heads.keyValue,
      head_dim: heads.size,
      linear_num_key_heads: delta.keyHeads,
      linear_num_value_heads: delta.valueHeads,
      linear_key_head_dim: delta.headSize,
      linear_value_head_dim: delta.headSize,
      linear_conv_kernel_dim: 4,
      full_attention_interval: 4,
      num_experts: numExperts,
      num_experts_per_tok: Math.min(8, numExperts),
      moe_intermediate_size: intermediate,
      shared_expert_intermediate_size: intermediate,
      mtp_num_hidden_layers: 1,
      vocab_size: vocabulary,
      hidden_act: 'silu',
      rms_norm_eps: 1e-6,
      max_position_embeddings: 262_144,
    },
    tie_word_embeddings: false,
    quantization_config: { quant_method: 'modelopt', quant_algo: 'MIXED_PRECISION', quantized_layers: tensors.quantized },
  };
  return { config, tensors: tensors.all, numShards: 8 };
}

/**
 * The shape of DeepSeek-V3: 61 layers, three of them dense, and a prediction head; FP8 in blocks as it was published, or NVFP4 experts as modelopt
 * exports them.
 */
export function deepseekV3({
  experts = 'fp8-block',
  numLayers = 61,
  numExperts = 256,
}: { experts?: 'fp8-block' | 'nvfp4'; numLayers?: number; numExperts?: number } = {}): SparseModel {
  const hidden = 7168;
  const [intermediate, moeIntermediate] = [18_432, 2048];
  const vocabulary = 129_280;
  const heads = { count: 128, nope: 128, rope: 64, value: 128 };
  const [queryRank, kvRank] = [1536, 512];
  const numDense = Math.min(3, numLayers - 1);
  const dense = experts === 'nvfp4' ? 'bf16' : 'fp8-block';
  const tensors = new Tensors();
  const addLayer = (layer: string, isRouted: boolean): void => {
    const module = `${layer}.self_attn`;
    tensors.module(`${module}.q_a_proj`, dense, queryRank, hidden);
    tensors.module(`${module}.q_b_proj`, dense, heads.count * (heads.nope + heads.rope), queryRank);
    tensors.module(`${module}.kv_a_proj_with_mqa`, dense, kvRank + heads.rope, hidden);
    tensors.module(`${module}.kv_b_proj`, dense, heads.count * (heads.nope + heads.value), kvRank);
    tensors.module(`${module}.o_proj`, dense, hidden, heads.count * heads.value);
    tensors.plain(`${module}.q_a_layernorm.weight`, queryRank);
    tensors.plain(`${module}.kv_a_layernorm.weight`, kvRank);
    for (const norm of ['input_layernorm', 'post_attention_layernorm']) tensors.plain(`${layer}.${norm}.weight`, hidden);
    if (!isRouted) {
      tensors.mlp(`${layer}.mlp`, dense, hidden, intermediate);
      return;
    }
    tensors.plain(`${layer}.mlp.gate.weight`, numExperts, hidden);
    tensors.all.push({ name: `${layer}.mlp.gate.e_score_correction_bias`, dtype: 'F32', shape: [numExperts] });
    tensors.mlp(`${layer}.mlp.shared_experts`, dense, hidden, moeIntermediate);
    tensors.experts(`${layer}.mlp`, experts, numExperts, hidden, moeIntermediate);
  };
  tensors.plain('model.embed_tokens.weight', vocabulary, hidden);
  for (let index = 0; index < numLayers; index++) addLayer(`model.layers.${String(index)}`, index >= numDense);
  tensors.plain('model.norm.weight', hidden);
  tensors.module('lm_head', 'bf16', vocabulary, hidden);
  const head = `model.layers.${String(numLayers)}`;
  tensors.module(`${head}.eh_proj`, 'bf16', hidden, 2 * hidden);
  for (const norm of ['enorm', 'hnorm', 'shared_head.norm']) tensors.plain(`${head}.${norm}.weight`, hidden);
  addLayer(head, true);
  tensors.module(`${head}.shared_head.head`, 'bf16', vocabulary, hidden);
  const quantization =
    experts === 'nvfp4'
      ? {
          quant_method: 'modelopt',
          quant_algo: 'NVFP4',
          group_size: 16,
          exclude_modules: [
            'lm_head',
            '*self_attn*',
            '*.mlp.shared_experts*',
            '*.eh_proj',
            '*.shared_head*',
            ...Array.from({ length: numDense }, (_, index) => `model.layers.${String(index)}.mlp*`),
          ],
        }
      : {
          quant_method: 'fp8',
          fmt: 'e4m3',
          activation_scheme: 'dynamic',
          weight_block_size: [128, 128],
          modules_to_not_convert: [`${head}.eh_proj`, `${head}.shared_head.head`, 'lm_head'],
        };
  const config = {
    architectures: ['DeepseekV3ForCausalLM'],
    model_type: 'deepseek_v3',
    hidden_size: hidden,
    num_hidden_layers: numLayers,
    num_attention_heads: heads.count,
    num_key_value_heads: heads.count,
    qk_nope_head_dim: heads.nope,
    qk_rope_head_dim: heads.rope,
    v_head_dim: heads.value,
    q_lora_rank: queryRank,
    kv_lora_rank: kvRank,
    intermediate_size: intermediate,
    moe_intermediate_size: moeIntermediate,
    first_k_dense_replace: numDense,
    moe_layer_freq: 1,
    n_routed_experts: numExperts,
    n_shared_experts: 1,
    num_experts_per_tok: Math.min(8, numExperts),
    n_group: Math.min(8, numExperts),
    topk_group: Math.min(4, numExperts),
    norm_topk_prob: true,
    scoring_func: 'sigmoid',
    topk_method: 'noaux_tc',
    routed_scaling_factor: 2.5,
    num_nextn_predict_layers: 1,
    vocab_size: vocabulary,
    hidden_act: 'silu',
    rms_norm_eps: 1e-6,
    max_position_embeddings: 163_840,
    tie_word_embeddings: false,
    quantization_config: quantization,
  };
  return { config, tensors: tensors.all, numShards: experts === 'nvfp4' ? 80 : 163 };
}
