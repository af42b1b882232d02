import { Checkpoint, describeModel } from '@moe-server/core';
import { readModelConfig } from '@moe-server/engine';

/** What steps of a model have to read, in bytes of the checkpoint: no engine that keeps its formats can read less. */
export interface ModelBytes {
  /** All weights. */
  readonly weightBytes: number;
  /** Outside the routed experts, read by every step; the embedding only where it is also the head. */
  readonly denseBytes: number;
  /** One expert of one layer; the mean where they differ. */
  readonly expertBytes: number;
  /** Layers times experts of a layer. */
  readonly numExperts: number;
  /** Experts that one token chooses in all layers together. */
  readonly expertsPerToken: number;
  /** Keys and values of one position in all layers, at 2 bytes each, or 1 where the checkpoint asks for FP8. */
  readonly kvPerPosition: number;
  readonly maxPositions: number;
}

/** One decode step, as far as it costs memory reads. */
export interface DecodeStep {
  readonly numSequences: number;
  /** Tokens that each sequence has; several steps: the mean. */
  readonly contextLength: number;
  /** Different experts that its tokens chose, added up over the layers. */
  readonly numExperts: number;
}

/** From config.json and the tensor headers. */
export async function modelBytesOf(folder: string): Promise<ModelBytes> {
  const checkpoint = await Checkpoint.open(folder);
  try {
    const { numLayers, numKvHeads, headDim, maxContextLength } = await readModelConfig(checkpoint);
    const groups = describeModel(checkpoint).groups.filter(({ role }) => role === 'target');
    const isTied = checkpoint.config.tie_word_embeddings === true;
    let denseBytes = 0;
    let allExpertBytes = 0;
    let unreadBytes = 0;
    let hasFp8Cache = false;
    for (const name of checkpoint.names()) {
      const { begin, end } = checkpoint.tensor(name);
      const bytes = end - begin;
      if (name.endsWith('.k_scale')) hasFp8Cache = true;
      if (name.includes('.experts.')) allExpertBytes += bytes;
      else if (name.endsWith('embed_tokens.weight') && !isTied) unreadBytes += bytes;
      else denseBytes += bytes;
    }
    const numExperts = groups.reduce((sum, { experts }) => sum + experts.length, 0);
    const expertsPerToken = groups.reduce((sum, { experts, numExperts: all, topK }) => sum + (topK * experts.length) / all, 0);
    return {
      weightBytes: denseBytes + allExpertBytes + unreadBytes,
      denseBytes,
      expertBytes: allExpertBytes / numExperts,
      numExperts,
      expertsPerToken: Math.round(expertsPerToken),
      kvPerPosition: 2 * numLayers * numKvHeads * headDim * (hasFp8Cache ? 1 : 2),
      maxPositions: maxContextLength,
    };
  } finally {
    await checkpoint.close();
  }
}

/** Every weight that the step needs once, and the keys and values of every sequence. */
export function stepBytes({ denseBytes, expertBytes, kvPerPosition }: ModelBytes, step: DecodeStep): number {
  return denseBytes + step.numExperts * expertBytes + step.numSequences * step.contextLength * kvPerPosition;
}
