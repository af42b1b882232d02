import { MoeError } from '@moe-server/core';
import type { BufferRef, KvCacheLayer } from '../device/commands.js';
import type { DecoderLayer } from '../layers/decoder-layer.js';
import { Embedding } from '../layers/embedding.js';
import { Linear } from '../layers/linear.js';
import { RmsNorm } from '../layers/rms-norm.js';
import { Rope } from '../layers/rope.js';
import type { StepEncoder } from '../layers/step-encoder.js';
import type { WeightSource } from '../layers/weights.js';
import type { ModelConfig } from '../model-config.js';
import type { Model } from './model.js';

/** What decoder-only families have in common: embedding, a stack of blocks, a final norm, the vocabulary projection. */
export class DecoderModel implements Model {
  readonly config: ModelConfig;
  readonly #embedding: Embedding;
  readonly #layers: readonly DecoderLayer[];
  readonly #norm: RmsNorm;
  readonly #lmHead: Linear;

  private constructor(config: ModelConfig, embedding: Embedding, layers: readonly DecoderLayer[], norm: RmsNorm, lmHead: Linear) {
    this.config = config;
    this.#embedding = embedding;
    this.#layers = layers;
    this.#norm = norm;
    this.#lmHead = lmHead;
  }

  /** @param loadLayer - loads the block of the given index. */
  static async load(
    weights: WeightSource,
    config: ModelConfig,
    maxPositions: number,
    loadLayer: (layer: number, rope: Rope) => Promise<DecoderLayer>,
  ): Promise<DecoderModel> {
    const { vocabSize, hiddenSize, headDim, rmsNormEps, numLayers } = config;
    // First, because it is read whole to be packed, and least is in memory now. Of models that tie it to the embedding, the plan has it
    // under this name too.
    const lmHead = await Linear.load(weights, 'lm_head');
    // Read to where it stays, while threads pack the first layers.
    const embedding = Embedding.load(weights, 'model.embed_tokens', vocabSize, hiddenSize);
    embedding.catch(() => undefined);
    const rope = Rope.create(weights, config.rope, headDim, maxPositions);
    const layers: DecoderLayer[] = [];
    for (let layer = 0; layer < numLayers; layer++) layers.push(await loadLayer(layer, rope));
    const norm = await RmsNorm.load(weights, 'model.norm', hiddenSize, rmsNormEps);
    return new DecoderModel(config, await embedding, layers, norm, lmHead);
  }

  readonly encode = (encoder: StepEncoder, cache: readonly KvCacheLayer[]): BufferRef => {
    const { hiddenSize, vocabSize } = this.config;
    const residual = encoder.buffer('residual', 'tokens', hiddenSize);
    this.#embedding.encode(encoder, residual);
    for (const [layer, block] of this.#layers.entries()) block.encode(encoder, residual, layerOf(cache, layer));

    // Only rows that somebody wants logits of pass the final norm and the widest matrix of the model.
    const last = encoder.buffer('last hidden states', 'logitRows', hiddenSize);
    const logits = encoder.buffer('logits', 'logitRows', vocabSize);
    encoder.append({ op: 'gatherRows', width: hiddenSize, input: residual, output: last });
    this.#norm.encode(encoder, last, last, 'logitRows');
    this.#lmHead.encode(encoder, last, logits, { rows: 'logitRows' });
    return logits;
  };
}

function layerOf(cache: readonly KvCacheLayer[], layer: number): KvCacheLayer {
  const found = cache[layer];
  if (found === undefined)
    throw new MoeError('MOE_INTERNAL', `The KV cache has no layer ${String(layer)}; it has ${String(cache.length)}.`);
  return found;
}
