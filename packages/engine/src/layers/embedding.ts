import type { BufferRef } from '../device/commands.js';
import type { StepEncoder } from './step-encoder.js';
import type { WeightSource } from './weights.js';

/** Token ids to the first hidden states. */
export class Embedding {
  readonly #table: BufferRef;
  readonly #vocabSize: number;
  readonly #width: number;

  constructor(table: BufferRef, vocabSize: number, width: number) {
    this.#table = table;
    this.#vocabSize = vocabSize;
    this.#width = width;
  }

  static async load(weights: WeightSource, module: string, vocabSize: number, width: number): Promise<Embedding> {
    return new Embedding(await weights.table(`${module}.weight`, vocabSize, width), vocabSize, width);
  }

  /** @param output - [tokens, width] f32 */
  encode(encoder: StepEncoder, output: BufferRef): void {
    encoder.append({ op: 'embed', table: this.#table, vocabSize: this.#vocabSize, width: this.#width, output });
  }
}
