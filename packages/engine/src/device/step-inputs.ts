/**
 * Everything that changes from step to step, in one buffer that JavaScript fills and the device reads: the only argument of a
 * replayed command list. The layout is fixed when the engine starts; native code reads the same offsets (native/cpu/step_inputs.h),
 * and a test compares the two.
 *
 * Sampling of row r: `target[r] >= 0` scores that token instead of sampling. Otherwise, with x = logits of the row:
 *  1. for each adjustment (token, bias, outputCount, seen) of the row: repetition penalty p (x > 0 ? x / p : x * p) where seen (Keskar et
 *     al. 2019), minus frequencyPenalty * outputCount, minus presencePenalty where outputCount > 0, plus bias (−Infinity masks);
 *  2. temperature 0: the largest x, lower id on ties. Else x / temperature, softmax over what is left after, in this order,
 *     top_k (0 = off; ties at the k-th place stay in), top_p (the smallest set of largest probabilities whose sum reaches p; 1 = off) and
 *     min_p (probability at least minP times the largest; 0 = off);
 *  3. the token is the inverse of the cumulative distribution in ascending token id at u = uniform(seed, counter).
 * uniform(seed, counter): the top 24 bits of splitmix64(splitmix64(seed) + counter) over 2^24 (Steele, Lea and Flood 2014).
 * Log-probabilities and ranks are those of the unmodified logits, as in vLLM's `raw_logprobs`.
 */
export interface StepLimits {
  /** Tokens of one step. */
  readonly maxNumTokens: number;
  readonly maxNumSeqs: number;
  readonly maxLogitRows: number;
  readonly maxBlocksPerSeq: number;
  /** Adjustments of all rows of one step together. */
  readonly maxAdjustments: number;
}

/** Byte offset of every array in the buffer. */
export interface StepLayout {
  readonly limits: StepLimits;
  readonly byteLength: number;
  readonly offsets: Readonly<Record<StepField, number>>;
}

/**
 * In the order in which they lie. All elements are 4 bytes except `seeds` (u64).
 *
 * - header i32[16]: [0] numTokens, [1] numSeqs, [2] numLogitRows; the rest 0
 * - tokenIds, positions, slots i32[maxNumTokens]: id, position in its sequence, KV slot (block * blockSize + offset)
 * - queryStarts i32[maxNumSeqs + 1]: first token of each sequence in the batch, then numTokens
 * - contextLengths i32[maxNumSeqs]: positions in the cache after this step
 * - blockTables i32[maxNumSeqs, maxBlocksPerSeq]
 * - logitRows i32[maxLogitRows]: index of the token
 * - temperatures, topPs, minPs, repetitionPenalties, presencePenalties, frequencyPenalties f32[maxLogitRows]
 * - topKs, targets, numTopLogprobs i32[maxLogitRows]
 * - counters i32[maxLogitRows]: how many tokens the sequence has generated before
 * - seeds u64[maxLogitRows]
 * - adjustmentStarts i32[maxLogitRows + 1]
 * - adjustments: 4 words each, [maxAdjustments]: token i32, bias f32, outputCount i32, seen i32
 */
export const stepFields = [
  'header',
  'tokenIds',
  'positions',
  'slots',
  'queryStarts',
  'contextLengths',
  'blockTables',
  'logitRows',
  'temperatures',
  'topPs',
  'minPs',
  'repetitionPenalties',
  'presencePenalties',
  'frequencyPenalties',
  'topKs',
  'targets',
  'numTopLogprobs',
  'counters',
  'seeds',
  'adjustmentStarts',
  'adjustments',
] as const;

export type StepField = (typeof stepFields)[number];

const alignment = 64;

/** Places every array on a boundary of 64 bytes. */
export function layoutStep(limits: StepLimits): StepLayout {
  const { maxNumTokens, maxNumSeqs, maxLogitRows, maxBlocksPerSeq, maxAdjustments } = limits;
  const bytes: Record<StepField, number> = {
    header: 64,
    tokenIds: 4 * maxNumTokens,
    positions: 4 * maxNumTokens,
    slots: 4 * maxNumTokens,
    queryStarts: 4 * (maxNumSeqs + 1),
    contextLengths: 4 * maxNumSeqs,
    blockTables: 4 * maxNumSeqs * maxBlocksPerSeq,
    logitRows: 4 * maxLogitRows,
    temperatures: 4 * maxLogitRows,
    topPs: 4 * maxLogitRows,
    minPs: 4 * maxLogitRows,
    repetitionPenalties: 4 * maxLogitRows,
    presencePenalties: 4 * maxLogitRows,
    frequencyPenalties: 4 * maxLogitRows,
    topKs: 4 * maxLogitRows,
    targets: 4 * maxLogitRows,
    numTopLogprobs: 4 * maxLogitRows,
    counters: 4 * maxLogitRows,
    seeds: 8 * maxLogitRows,
    adjustmentStarts: 4 * (maxLogitRows + 1),
    adjustments: 16 * maxAdjustments,
  };
  const offsets = {} as Record<StepField, number>;
  let end = 0;
  for (const field of stepFields) {
    offsets[field] = end;
    end += Math.ceil(bytes[field] / alignment) * alignment;
  }
  return { limits, byteLength: end, offsets };
}

/** Typed views of one step buffer. */
export class StepInputs {
  readonly layout: StepLayout;
  readonly buffer: ArrayBuffer;
  readonly header: Int32Array;
  readonly tokenIds: Int32Array;
  readonly positions: Int32Array;
  readonly slots: Int32Array;
  readonly queryStarts: Int32Array;
  readonly contextLengths: Int32Array;
  readonly blockTables: Int32Array;
  readonly logitRows: Int32Array;
  readonly temperatures: Float32Array;
  readonly topPs: Float32Array;
  readonly minPs: Float32Array;
  readonly repetitionPenalties: Float32Array;
  readonly presencePenalties: Float32Array;
  readonly frequencyPenalties: Float32Array;
  readonly topKs: Int32Array;
  readonly targets: Int32Array;
  readonly numTopLogprobs: Int32Array;
  readonly counters: Int32Array;
  readonly seeds: BigUint64Array;
  readonly adjustmentStarts: Int32Array;
  /** Token, (bias), outputCount, seen as integers; the bias lies in {@link adjustmentBiases} at the same index. */
  readonly adjustmentWords: Int32Array;
  readonly adjustmentBiases: Float32Array;

  /** @param buffer - at least `layout.byteLength` bytes, from the device's allocator. */
  constructor(layout: StepLayout, buffer: ArrayBuffer) {
    const { offsets, limits } = layout;
    const ints = (field: StepField, length: number): Int32Array => new Int32Array(buffer, offsets[field], length);
    const floats = (field: StepField): Float32Array => new Float32Array(buffer, offsets[field], limits.maxLogitRows);
    this.layout = layout;
    this.buffer = buffer;
    this.header = ints('header', 16);
    this.tokenIds = ints('tokenIds', limits.maxNumTokens);
    this.positions = ints('positions', limits.maxNumTokens);
    this.slots = ints('slots', limits.maxNumTokens);
    this.queryStarts = ints('queryStarts', limits.maxNumSeqs + 1);
    this.contextLengths = ints('contextLengths', limits.maxNumSeqs);
    this.blockTables = ints('blockTables', limits.maxNumSeqs * limits.maxBlocksPerSeq);
    this.logitRows = ints('logitRows', limits.maxLogitRows);
    this.temperatures = floats('temperatures');
    this.topPs = floats('topPs');
    this.minPs = floats('minPs');
    this.repetitionPenalties = floats('repetitionPenalties');
    this.presencePenalties = floats('presencePenalties');
    this.frequencyPenalties = floats('frequencyPenalties');
    this.topKs = ints('topKs', limits.maxLogitRows);
    this.targets = ints('targets', limits.maxLogitRows);
    this.numTopLogprobs = ints('numTopLogprobs', limits.maxLogitRows);
    this.counters = ints('counters', limits.maxLogitRows);
    this.seeds = new BigUint64Array(buffer, offsets.seeds, limits.maxLogitRows);
    this.adjustmentStarts = ints('adjustmentStarts', limits.maxLogitRows + 1);
    this.adjustmentWords = ints('adjustments', 4 * limits.maxAdjustments);
    this.adjustmentBiases = new Float32Array(buffer, offsets.adjustments, 4 * limits.maxAdjustments);
  }
}
