import { Checkpoint } from '@moe-server/core';

/** What one decoded token has to read, in bytes of the checkpoint: no engine that keeps its formats can read less. */
export interface ActiveBytes {
  /** All weights. */
  readonly weightBytes: number;
  /** Weights of one token: top_k of the experts, everything else whole, the embedding only where it is also the head. */
  readonly perToken: number;
  /** Keys and values of one position in all layers, at 2 bytes each, or 1 where the checkpoint asks for FP8. */
  readonly kvPerPosition: number;
  readonly maxPositions: number;
}

/** From config.json and the tensor headers. */
export async function activeBytesOf(folder: string): Promise<ActiveBytes> {
  const checkpoint = await Checkpoint.open(folder);
  try {
    const number = (key: string): number => {
      const value = checkpoint.config[key];
      if (typeof value !== 'number') throw new Error(`config.json: ${key} must be a number, got ${JSON.stringify(value)}.`);
      return value;
    };
    const share = number('num_experts_per_tok') / number('num_experts');
    const isTied = checkpoint.config.tie_word_embeddings === true;
    let weightBytes = 0;
    let perToken = 0;
    let hasFp8Cache = false;
    for (const name of checkpoint.names()) {
      const { begin, end } = checkpoint.tensor(name);
      const bytes = end - begin;
      weightBytes += bytes;
      if (name.endsWith('.k_scale')) hasFp8Cache = true;
      if (name.includes('.experts.')) perToken += bytes * share;
      else if (!name.endsWith('embed_tokens.weight') || isTied) perToken += bytes;
    }
    const kvPerPosition = 2 * number('num_hidden_layers') * number('num_key_value_heads') * number('head_dim') * (hasFp8Cache ? 1 : 2);
    return { weightBytes, perToken, kvPerPosition, maxPositions: number('max_position_embeddings') };
  } finally {
    await checkpoint.close();
  }
}
