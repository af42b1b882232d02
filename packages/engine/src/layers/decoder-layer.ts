import type { BufferRef, KvCacheLayer } from '../device/commands.js';
import type { ModelConfig } from '../model-config.js';
import { Attention } from './attention.js';
import type { DenseMlp } from './dense-mlp.js';
import type { Moe } from './moe.js';
import { RmsNorm } from './rms-norm.js';
import type { Rope } from './rope.js';
import type { StepEncoder } from './step-encoder.js';
import type { WeightSource } from './weights.js';

/** A pre-norm transformer block: x += attention(norm(x)), then x += mlp(norm(x)). */
export class DecoderLayer {
  readonly #config: ModelConfig;
  readonly #inputNorm: RmsNorm;
  readonly #attention: Attention;
  readonly #postAttentionNorm: RmsNorm;
  readonly #mlp: Moe | DenseMlp;

  private constructor(config: ModelConfig, inputNorm: RmsNorm, attention: Attention, postAttentionNorm: RmsNorm, mlp: Moe | DenseMlp) {
    this.#config = config;
    this.#inputNorm = inputNorm;
    this.#attention = attention;
    this.#postAttentionNorm = postAttentionNorm;
    this.#mlp = mlp;
  }

  /** @param loadMlp - families name their MLPs differently. */
  static async load(
    weights: WeightSource,
    module: string,
    config: ModelConfig,
    rope: Rope,
    loadMlp: () => Promise<Moe | DenseMlp>,
  ): Promise<DecoderLayer> {
    const { hiddenSize, rmsNormEps } = config;
    const inputNorm = await RmsNorm.load(weights, `${module}.input_layernorm`, hiddenSize, rmsNormEps);
    const attention = await Attention.load(weights, `${module}.self_attn`, config, rope);
    const postAttentionNorm = await RmsNorm.load(weights, `${module}.post_attention_layernorm`, hiddenSize, rmsNormEps);
    return new DecoderLayer(config, inputNorm, attention, postAttentionNorm, await loadMlp());
  }

  /** @param residual - [tokens, hiddenSize] f32, the residual stream. */
  encode(encoder: StepEncoder, residual: BufferRef, cache: KvCacheLayer): void {
    const normed = encoder.buffer('normed', 'tokens', this.#config.hiddenSize);
    this.#inputNorm.encode(encoder, residual, normed);
    this.#attention.encode(encoder, normed, residual, cache);
    this.#postAttentionNorm.encode(encoder, residual, normed);
    this.#mlp.encode(encoder, normed, residual);
  }
}
