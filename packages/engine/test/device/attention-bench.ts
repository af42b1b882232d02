import type { KvCacheDType } from '@moe-server/core';
import type { BufferRef, KvCacheLayer } from '../../src/device/commands.js';
import type { Device, Program } from '../../src/device/device.js';
import type { StepLimits } from '../../src/device/step-inputs.js';
import { CommandBench, floatsIn } from './command-bench.js';

export interface AttentionShape {
  readonly dtype: KvCacheDType;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly slidingWindow: number;
  /** [numHeads]; undefined = none. */
  readonly sinks: Float32Array | undefined;
}

/** What one sequence brings to a step: its next tokens after `context` positions that are in the cache already. */
export interface SequencePart {
  readonly blocks: readonly number[];
  readonly context: number;
  /** [numTokens, rowWidth]: queries, keys, values. */
  readonly rows: Float32Array;
}

const blockSize = 16;
const numBlocks = 128;

/** One attention layer with its cache: stores keys and values of a step's tokens, then attends. */
export class AttentionBench extends CommandBench {
  readonly rowWidth: number;
  readonly #shape: AttentionShape;
  readonly #rows: BufferRef;
  readonly #output: BufferRef;
  readonly #program: Program;

  constructor(device: Device, shape: AttentionShape, limits: Partial<StepLimits> = {}) {
    super({ maxNumTokens: 700, maxNumSeqs: 4, maxBlocksPerSeq: 48, ...limits }, device);
    const { dtype, numHeads, numKvHeads, headDim } = shape;
    this.#shape = shape;
    this.rowWidth = (numHeads + 2 * numKvHeads) * headDim;
    const { maxNumTokens } = this.inputs.layout.limits;
    this.#rows = this.floats([], maxNumTokens * this.rowWidth);
    this.#output = this.floats([], maxNumTokens * numHeads * headDim);
    const cacheBytes = numBlocks * numKvHeads * blockSize * headDim * (dtype === 'bf16' ? 2 : 1);
    const cache: KvCacheLayer = {
      dtype,
      keys: device.allocate(cacheBytes, 'keys'),
      values: device.allocate(cacheBytes, 'values'),
      numBlocks,
      blockSize,
      numKvHeads,
      headDim,
      keyScale: dtype === 'bf16' ? 1 : 0.01,
      valueScale: dtype === 'bf16' ? 1 : 0.02,
    };
    const { rowWidth } = this;
    const keyOffset = numHeads * headDim;
    this.#program = device.compile(
      [
        { op: 'kvStore', tensor: this.#rows, rowWidth, keyOffset, valueOffset: keyOffset + numKvHeads * headDim, cache },
        {
          op: 'attention',
          queries: this.#rows,
          rowWidth,
          queryOffset: 0,
          numHeads,
          scale: headDim ** -0.5,
          cache,
          slidingWindow: shape.slidingWindow,
          sinks: shape.sinks && this.floats(shape.sinks),
          output: this.#output,
        },
      ],
      this.inputs.layout,
    );
  }

  /** The outputs of each part's tokens, [numTokens, numHeads * headDim]. */
  async step(parts: readonly SequencePart[]): Promise<Float32Array[]> {
    const { inputs, rowWidth } = this;
    const { maxBlocksPerSeq } = inputs.layout.limits;
    let token = 0;
    const ends: number[] = [];
    for (const [s, { blocks, context, rows }] of parts.entries()) {
      const numTokens = rows.length / rowWidth;
      floatsIn(this.#rows).set(rows, token * rowWidth);
      inputs.queryStarts[s] = token;
      inputs.contextLengths[s] = context + numTokens;
      inputs.blockTables.set(blocks, s * maxBlocksPerSeq);
      for (let position = context; position < context + numTokens; position++, token++) {
        inputs.positions[token] = position;
        inputs.slots[token] = (blocks[Math.floor(position / blockSize)] ?? 0) * blockSize + (position % blockSize);
      }
      ends.push(token);
    }
    inputs.queryStarts[parts.length] = token;
    this.setCounts({ tokens: token, sequences: parts.length });
    await this.device.submit(this.#program, inputs);
    const width = this.#shape.numHeads * this.#shape.headDim;
    return ends.map((end, s) => floatsIn(this.#output).slice((ends[s - 1] ?? 0) * width, end * width));
  }
}
