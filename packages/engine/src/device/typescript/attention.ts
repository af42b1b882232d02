import type { AttentionCommand, KvCacheLayer, KvStoreCommand } from '../commands.js';
import type { StepLimits } from '../step-inputs.js';
import type { KvStorage } from './kv-storage.js';
import { openKvStorage } from './kv-storage.js';
import type { Operator } from './operator.js';
import { floatsOf, numSequencesOf, numTokensOf } from './operator.js';

/**
 *
 */
export function kvStore(command: KvStoreCommand, limits: StepLimits): Operator {
  const { rowWidth, keyOffset, valueOffset, cache } = command;
  const { numKvHeads, headDim, blockSize } = cache;
  const tensor = floatsOf(command.tensor, limits.maxNumTokens * rowWidth, 'The tensor of kvStore');
  const keys = openKvStorage(cache, 'keys');
  const values = openKvStorage(cache, 'values');
  return (inputs) => {
    const numTokens = numTokensOf(inputs);
    for (let t = 0; t < numTokens; t++) {
      const slot = inputs.slots[t] ?? 0;
      for (let head = 0; head < numKvHeads; head++) {
        const start = headStart(cache, Math.floor(slot / blockSize), head);
        const row = t * rowWidth + head * headDim;
        for (let i = 0; i < headDim; i++) {
          keys.write(start + keyElement(cache, slot % blockSize, i), tensor[row + keyOffset + i]!);
          values.write(start + valueElement(cache, slot % blockSize, i), tensor[row + valueOffset + i]!);
        }
      }
    }
  };
}

/**
 *
 */
export function attention(command: AttentionCommand, limits: StepLimits): Operator {
  const { rowWidth, queryOffset, numHeads, scale, cache, slidingWindow } = command;
  const { numKvHeads, headDim } = cache;
  const queries = floatsOf(command.queries, limits.maxNumTokens * rowWidth, 'The queries of attention');
  const output = floatsOf(command.output, limits.maxNumTokens * numHeads * headDim, 'The output of attention');
  const sinks = command.sinks && floatsOf(command.sinks, numHeads, 'The sinks of attention');
  const keys = openKvStorage(cache, 'keys');
  const values = openKvStorage(cache, 'values');
  const queriesPerKvHead = numHeads / numKvHeads;
  return (inputs) => {
    const numSequences = numSequencesOf(inputs);
    for (let sequence = 0; sequence < numSequences; sequence++) {
      const blocks = inputs.blockTables.subarray(sequence * limits.maxBlocksPerSeq, (sequence + 1) * limits.maxBlocksPerSeq);
      const end = inputs.queryStarts[sequence + 1] ?? 0;
      for (let t = inputs.queryStarts[sequence] ?? 0; t < end; t++) {
        const position = inputs.positions[t] ?? 0;
        const first = slidingWindow > 0 ? Math.max(0, position - slidingWindow + 1) : 0;
        for (let head = 0; head < numHeads; head++) {
          const kvHead = Math.floor(head / queriesPerKvHead);
          const query = queries.subarray(t * rowWidth + queryOffset + head * headDim, t * rowWidth + queryOffset + (head + 1) * headDim);
          const out = output.subarray((t * numHeads + head) * headDim, (t * numHeads + head + 1) * headDim);
          attend(query, { cache, keys, values, blocks, kvHead, first, last: position }, scale, sinks?.[head], out);
        }
      }
    }
  };
}

/** What one query may look at: positions `first` to `last` of one key/value head of one sequence. */
interface Context {
  readonly cache: KvCacheLayer;
  readonly keys: KvStorage;
  readonly values: KvStorage;
  /** KV blocks of the sequence, from position 0 on. */
  readonly blocks: Int32Array;
  readonly kvHead: number;
  readonly first: number;
  readonly last: number;
}

function attend(query: Float32Array, context: Context, scale: number, sink: number | undefined, output: Float32Array): void {
  const { cache, keys, values, first, last } = context;
  const scores = new Float64Array(last - first + 1);
  let maximum = sink ?? -Infinity;
  for (let position = first; position <= last; position++) {
    const start = startOf(context, position);
    const offset = position % cache.blockSize;
    let dot = 0;
    for (let i = 0; i < query.length; i++) dot += query[i]! * keys.read(start + keyElement(cache, offset, i));
    scores[position - first] = dot * scale;
    maximum = Math.max(maximum, dot * scale);
  }
  let denominator = sink === undefined ? 0 : Math.exp(sink - maximum);
  const sums = new Float64Array(query.length);
  for (let position = first; position <= last; position++) {
    const weight = Math.exp(scores[position - first]! - maximum);
    denominator += weight;
    const start = startOf(context, position);
    const offset = position % cache.blockSize;
    for (let i = 0; i < sums.length; i++) sums[i] = sums[i]! + weight * values.read(start + valueElement(cache, offset, i));
  }
  for (let i = 0; i < sums.length; i++) output[i] = sums[i]! / denominator;
}

function startOf({ cache, blocks, kvHead }: Context, position: number): number {
  return headStart(cache, blocks[Math.floor(position / cache.blockSize)] ?? 0, kvHead);
}

/** First element of one head in one block; commands.ts says how the cache is laid out. */
function headStart({ numKvHeads, blockSize, headDim }: KvCacheLayer, block: number, head: number): number {
  return (block * numKvHeads + head) * blockSize * headDim;
}

/** Column `i` of the key at `offset`, from its head's start: [headDim / 2, blockSize, 2]. */
function keyElement({ blockSize }: KvCacheLayer, offset: number, i: number): number {
  return ((i >> 1) * blockSize + offset) * 2 + (i & 1);
}

/** Column `i` of the value at `offset`, from its head's start: [blockSize / 2, headDim, 2]. */
function valueElement({ headDim }: KvCacheLayer, offset: number, i: number): number {
  return ((offset >> 1) * headDim + i) * 2 + (offset & 1);
}
