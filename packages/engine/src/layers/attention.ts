import type { BufferRef, KvCacheLayer } from '../device/commands.js';
import type { ModelConfig } from '../model-config.js';
import { Linear } from './linear.js';
import type { Rope } from './rope.js';
import type { StepEncoder } from './step-encoder.js';
import type { WeightSource } from './weights.js';

/** Causal self-attention with grouped queries over the paged cache. */
export class Attention {
  readonly #config: ModelConfig;
  readonly #rope: Rope;
  readonly #qkvProj: Linear;
  readonly #oProj: Linear;
  readonly #headNorms: { readonly query: BufferRef; readonly key: BufferRef } | undefined;

  private constructor(
    config: ModelConfig,
    rope: Rope,
    qkvProj: Linear,
    oProj: Linear,
    headNorms: { query: BufferRef; key: BufferRef } | undefined,
  ) {
    this.#config = config;
    this.#rope = rope;
    this.#qkvProj = qkvProj;
    this.#oProj = oProj;
    this.#headNorms = headNorms;
  }

  static async load(weights: WeightSource, module: string, config: ModelConfig, rope: Rope): Promise<Attention> {
    const qkvProj = await Linear.load(weights, `${module}.q_proj`, `${module}.k_proj`, `${module}.v_proj`);
    const headNorms = config.hasQkNorm
      ? {
          query: await weights.vector(`${module}.q_norm.weight`, config.headDim),
          key: await weights.vector(`${module}.k_norm.weight`, config.headDim),
        }
      : undefined;
    const oProj = await Linear.load(weights, `${module}.o_proj`);
    return new Attention(config, rope, qkvProj, oProj, headNorms);
  }

  /**
   * residual += o_proj(attention(input)).
   *
   * @param input - [tokens, hiddenSize] f32
   * @param residual - [tokens, hiddenSize] f32
   */
  encode(encoder: StepEncoder, input: BufferRef, residual: BufferRef, cache: KvCacheLayer): void {
    const { numHeads, numKvHeads, headDim, rmsNormEps: eps, slidingWindow } = this.#config;
    const keyOffset = numHeads * headDim;
    const valueOffset = keyOffset + numKvHeads * headDim;
    const rowWidth = valueOffset + numKvHeads * headDim;
    const qkv = encoder.buffer('queries, keys and values', 'tokens', rowWidth);
    const output = encoder.buffer('attention output', 'tokens', numHeads * headDim);

    this.#qkvProj.encode(encoder, input, qkv);
    if (this.#headNorms !== undefined) {
      const { query, key } = this.#headNorms;
      encoder.append({ op: 'headRmsNorm', tensor: qkv, rowWidth, columnOffset: 0, numHeads, headDim, eps, weight: query });
      encoder.append({
        op: 'headRmsNorm',
        tensor: qkv,
        rowWidth,
        columnOffset: keyOffset,
        numHeads: numKvHeads,
        headDim,
        eps,
        weight: key,
      });
    }
    // Keys follow the queries, so that one command turns both.
    this.#rope.encode(encoder, qkv, { rowWidth, columnOffset: 0, numHeads: numHeads + numKvHeads });
    encoder.append({ op: 'kvStore', tensor: qkv, rowWidth, keyOffset, valueOffset, cache });
    encoder.append({
      op: 'attention',
      queries: qkv,
      rowWidth,
      queryOffset: 0,
      numHeads,
      scale: 1 / Math.sqrt(headDim),
      cache,
      slidingWindow,
      sinks: undefined,
      output,
    });
    this.#oProj.encode(encoder, output, residual, { accumulate: true });
  }
}
