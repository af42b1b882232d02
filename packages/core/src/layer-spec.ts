import type { QuantizedKvCacheDType } from './kv-cache.js';
import type { SchemeKey } from './quant/quant-scheme.js';

/**
 * What the oracle is asked about: one expert group or one linear. Made from config.json and safetensors headers alone,
 * before a weight is read. Everything is plain data and survives JSON.
 */
export type LayerSpec = ExpertGroupSpec | LinearSpec;

/** `target`: the model that answers. `draft`: layers of a multi-token-prediction head. */
export type LayerRole = 'target' | 'draft';

/**
 * The unit of binding for experts: those experts of one layer whose projections have the same schemes. A layer that mixes
 * schemes has several groups; each sees only its own experts.
 */
export interface ExpertGroupSpec {
  readonly kind: 'moe';
  /** Module name in the checkpoint, `model.layers.3.mlp.experts`; `#<scheme>` follows where a layer has several groups. */
  readonly name: string;
  readonly role: LayerRole;
  /** Decoder layer, counted from 0. */
  readonly layerIndex: number;
  /** Scheme of gate and up (`w13`), and of down (`w2`). */
  readonly schemes: { readonly w13: SchemeKey; readonly w2: SchemeKey };
  readonly hiddenSize: number;
  /** Inner width of one expert on this rank, after tensor parallel. */
  readonly moeIntermediateSize: number;
  /** Experts of the whole layer, this group's and others'. */
  readonly numExperts: number;
  /** Global ids of the group's experts, ascending. Position in this list = slot. */
  readonly experts: readonly number[];
  readonly topK: number;
  readonly activation: Activation;
  /** Both projections add a bias. */
  readonly hasBias: boolean;
  readonly routing: RoutingMethod;
  readonly parallel: ParallelPlacement;
}

/** One matrix product outside the routed experts: attention projections, dense MLP, shared expert, vocabulary projection. */
export interface LinearSpec {
  readonly kind: 'linear';
  /** Module name; for fused modules the name of the fusion, `model.layers.0.self_attn.qkv_proj`. */
  readonly name: string;
  readonly role: LayerRole;
  /** Undefined outside the decoder layers (lm_head). */
  readonly layerIndex: number | undefined;
  readonly scheme: SchemeKey;
  /** Modules that share this input and scheme, in the order of their rows in the output; one or more. */
  readonly modules: readonly { readonly name: string; readonly outFeatures: number }[];
  /** K, on this rank. */
  readonly inFeatures: number;
  /** N, the sum over modules, on this rank. */
  readonly outFeatures: number;
  /** Which of the two sizes tensor parallel has cut; left out where the linear is whole. */
  readonly cut?: 'inFeatures' | 'outFeatures';
  readonly hasBias: boolean;
  /**
   * What a quantized KV cache rounds this linear's keys or values to; left out where it computes none, or the cache stores bfloat16. A kernel
   * that disturbs its inputs moves some of them to the next number of that type, a far larger step than the disturbance.
   */
  readonly cachedAs?: QuantizedKvCacheDType;
  readonly parallel: ParallelPlacement;
}

/**
 * How the ranks share a layer. Experts are either cut by tensor parallel or spread whole by expert parallel, linears cut or whole, and the
 * placement of a spec says what holds for that layer.
 */
export interface ParallelPlacement {
  readonly tpRank: number;
  readonly tpSize: number;
  readonly epRank: number;
  readonly epSize: number;
}

export const singleRank: ParallelPlacement = { tpRank: 0, tpSize: 1, epRank: 0, epSize: 1 };

/**
 * What stands between the two projections, with g = gate and u = up.
 *
 * - `silu`: silu(g) * u.
 * - `swiglu`: g' = min(g, limit), u' = clamp(u, -limit, limit), (u' + 1) * g' * sigmoid(alpha * g'), as gpt-oss has it.
 * - `other`: a name from config.json that the core does not know. No rule covers it.
 */
export type Activation =
  | { readonly type: 'silu' }
  | { readonly type: 'swiglu'; readonly alpha: number; readonly limit: number }
  | { readonly type: 'other'; readonly name: string };

/** How router logits become topkIds and topkWeights. */
export interface RoutingMethod {
  readonly score: 'softmax' | 'sigmoid';
  /** `score-first`: score all experts, choose the k best. `topk-first`: choose the k best logits, then score those. */
  readonly order: 'score-first' | 'topk-first';
  /** Divide the chosen weights by their sum. */
  readonly renormalize: boolean;
  /** DeepSeek's group-limited choice; 1 and 1 without. */
  readonly numGroups: number;
  readonly topkGroups: number;
  /** A per-expert bias is added for choosing, not for weighting (DeepSeek's e_score_correction_bias). */
  readonly hasCorrectionBias: boolean;
  /** The router projection itself adds a bias. */
  readonly hasRouterBias: boolean;
  /** Factor on the final weights. */
  readonly scalingFactor: number;
}
