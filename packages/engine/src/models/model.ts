import type { BufferRef, KvCacheLayer } from '../device/commands.js';
import type { StepEncoder } from '../layers/step-encoder.js';
import type { WeightSource } from '../layers/weights.js';
import type { ModelConfig } from '../model-config.js';

/** A loaded model. It computes nothing itself: it records what a device executes. */
export interface Model {
  readonly config: ModelConfig;
  /**
   * Records a forward pass, from the step's token ids to the logits of its logit rows. Called once per cache.
   *
   * @param cache - one entry per decoder layer.
   * @returns [logitRows, vocabSize] f32
   */
  readonly encode: (encoder: StepEncoder, cache: readonly KvCacheLayer[]) => BufferRef;
}

/** Loads the weights of one family, layer by layer. `maxPositions`: positions that a sequence can reach. */
export type LoadModel = (weights: WeightSource, config: ModelConfig, maxPositions: number) => Promise<Model>;
