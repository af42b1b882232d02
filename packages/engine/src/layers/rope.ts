import type { BufferRef } from '../device/commands.js';
import type { RopeConfig, RopeScaling } from '../model-config.js';
import type { StepEncoder } from './step-encoder.js';
import type { WeightSource } from './weights.js';

/** Rotary position embedding (Su et al. 2021), rotate-half form on whole heads. One table serves all layers. */
export class Rope {
  readonly #table: BufferRef;
  readonly #headDim: number;
  readonly #maxPositions: number;

  private constructor(table: BufferRef, headDim: number, maxPositions: number) {
    this.#table = table;
    this.#headDim = headDim;
    this.#maxPositions = maxPositions;
  }

  static create(weights: WeightSource, config: RopeConfig, headDim: number, maxPositions: number): Rope {
    return new Rope(weights.constant('rotary embedding', ropeTable(config, headDim, maxPositions)), headDim, maxPositions);
  }

  /** In place on `numHeads` neighbouring heads of each row of `tensor`, [tokens, rowWidth] f32. */
  encode(encoder: StepEncoder, tensor: BufferRef, place: { rowWidth: number; columnOffset: number; numHeads: number }): void {
    encoder.append({
      op: 'rope',
      tensor,
      ...place,
      headDim: this.#headDim,
      rotaryDim: this.#headDim,
      interleaved: false,
      table: this.#table,
      maxPositions: this.#maxPositions,
    });
  }
}

/**
 * [maxPositions, rotaryDim] f32: rotaryDim/2 cosines, then rotaryDim/2 sines. Frequencies and angles are rounded to float32 as
 * transformers computes them, so that far positions see the angles that the model was trained with.
 */
export function ropeTable({ theta, scaling }: RopeConfig, rotaryDim: number, maxPositions: number): Float32Array {
  const frequencies = ropeFrequencies(theta, rotaryDim, scaling);
  const magnitude = scaling.type === 'yarn' ? scaling.attentionFactor : 1;
  const numPairs = rotaryDim / 2;
  const table = new Float32Array(maxPositions * rotaryDim);
  for (let position = 0; position < maxPositions; position++) {
    for (const [i, frequency] of frequencies.entries()) {
      const angle = Math.fround(position * frequency);
      table[position * rotaryDim + i] = magnitude * Math.cos(angle);
      table[position * rotaryDim + numPairs + i] = magnitude * Math.sin(angle);
    }
  }
  return table;
}

/** [rotaryDim/2]: radians per position of each pair. */
export function ropeFrequencies(theta: number, rotaryDim: number, scaling: RopeScaling): Float32Array {
  const plain = Float32Array.from({ length: rotaryDim / 2 }, (_, i) => 1 / theta ** ((2 * i) / rotaryDim));
  switch (scaling.type) {
    case 'default':
      return plain;
    case 'linear':
      return plain.map((frequency) => frequency / scaling.factor);
    case 'llama3':
      return plain.map((frequency) => llama3Frequency(frequency, scaling));
    case 'yarn':
      return yarnFrequencies(plain, theta, rotaryDim, scaling);
  }
}

/** Long waves are stretched by the factor, short ones left alone, those between blended (Llama 3.1). */
function llama3Frequency(frequency: number, scaling: Extract<RopeScaling, { type: 'llama3' }>): number {
  const { factor, lowFreqFactor, highFreqFactor, originalMaxPositions } = scaling;
  const wavesInContext = (originalMaxPositions * frequency) / (2 * Math.PI);
  if (wavesInContext < lowFreqFactor) return frequency / factor;
  if (wavesInContext > highFreqFactor) return frequency;
  const smooth = (wavesInContext - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
  return ((1 - smooth) * frequency) / factor + smooth * frequency;
}

/** NTK-by-parts (Peng et al. 2023, section 3.2): a linear ramp over the dimensions between beta_fast and beta_slow turns per context. */
function yarnFrequencies(
  plain: Float32Array,
  theta: number,
  rotaryDim: number,
  scaling: Extract<RopeScaling, { type: 'yarn' }>,
): Float32Array {
  const { factor, originalMaxPositions, betaFast, betaSlow, truncate } = scaling;
  const dimensionOf = (turns: number): number =>
    (rotaryDim * Math.log(originalMaxPositions / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const fast = dimensionOf(betaFast);
  const slow = dimensionOf(betaSlow);
  const low = Math.max(truncate ? Math.floor(fast) : fast, 0);
  const high = Math.min(truncate ? Math.ceil(slow) : slow, rotaryDim - 1);
  // transformers widens an empty ramp by this much, so that there is no division by zero.
  const width = high === low ? 0.001 : high - low;
  return plain.map((frequency, i) => {
    const stretched = Math.min(Math.max((i - low) / width, 0), 1);
    return (frequency / factor) * stretched + frequency * (1 - stretched);
  });
}
