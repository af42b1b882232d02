import type { Batch, RowOutput } from '../batch.js';
import type { BufferRef, SampleCommand } from '../device/commands.js';
import type { StepLimits } from '../device/step-inputs.js';
import type { ActivationBuffers } from './activation-buffers.js';
import type { StepEncoder } from './step-encoder.js';

/** The end of a step: logits to token ids and log-probabilities, and their way back to JavaScript. */
export class Sampler {
  readonly #vocabSize: number;
  readonly #command: Omit<SampleCommand, 'logits'>;
  readonly #maxLogitRows: number;
  readonly #tokenIds: Int32Array;
  readonly #logprobs: Float32Array;
  readonly #ranks: Int32Array;
  readonly #topIds: Int32Array;
  readonly #topLogprobs: Float32Array;

  constructor(buffers: ActivationBuffers, { maxLogitRows }: StepLimits, vocabSize: number, maxTopLogprobs: number) {
    const tokenIds = buffers.get('sampled token ids', 'logitRows', 1);
    const logprobs = buffers.get('sampled logprobs', 'logitRows', 1);
    const ranks = buffers.get('sampled ranks', 'logitRows', 1);
    const topIds = buffers.get('top ids', 'logitRows', maxTopLogprobs);
    const topLogprobs = buffers.get('top logprobs', 'logitRows', maxTopLogprobs);
    this.#vocabSize = vocabSize;
    this.#maxLogitRows = maxLogitRows;
    this.#command = { op: 'sample', vocabSize, tokenIds, logprobs, ranks, maxTopLogprobs, topIds, topLogprobs };
    this.#tokenIds = ints(tokenIds);
    this.#logprobs = floats(logprobs);
    this.#ranks = ints(ranks);
    this.#topIds = ints(topIds);
    this.#topLogprobs = floats(topLogprobs);
  }

  /** @param logits - [logitRows, vocabSize] f32; may be changed. */
  encode(encoder: StepEncoder, logits: BufferRef): void {
    encoder.append({ ...this.#command, logits });
  }

  /** What the last step sampled for this batch. */
  read(batch: Batch): RowOutput[][] {
    let row = 0;
    return batch.sequences.map((sequence) => sequence.rows.map(({ numTopLogprobs }) => this.#readRow(row++, numTopLogprobs)));
  }

  /** Copies the first rows of the logits. */
  copyLogits({ buffer, byteOffset }: BufferRef, numRows: number): Float32Array[] {
    const logits = new Float32Array(buffer, byteOffset, this.#maxLogitRows * this.#vocabSize);
    return Array.from({ length: numRows }, (_, row) => logits.slice(row * this.#vocabSize, (row + 1) * this.#vocabSize));
  }

  #readRow(row: number, numTopLogprobs: number): RowOutput {
    const { maxTopLogprobs } = this.#command;
    const first = row * maxTopLogprobs;
    const topLogprobs = [];
    for (let i = first; i < first + Math.min(numTopLogprobs, maxTopLogprobs); i++) {
      topLogprobs.push({ tokenId: this.#topIds[i] ?? -1, logprob: this.#topLogprobs[i] ?? NaN });
    }
    return { tokenId: this.#tokenIds[row] ?? -1, logprob: this.#logprobs[row] ?? NaN, rank: this.#ranks[row] ?? 0, topLogprobs };
  }
}

function floats({ buffer, byteOffset, byteLength }: BufferRef): Float32Array {
  return new Float32Array(buffer, byteOffset, byteLength / 4);
}

function ints({ buffer, byteOffset, byteLength }: BufferRef): Int32Array {
  return new Int32Array(buffer, byteOffset, byteLength / 4);
}
