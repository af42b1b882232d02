import type { Activation, Kernel, KvCacheDType, RoutingMethod } from '@moe-server/core';

/**
 * A recorded step is a list of commands: plain data, made once, replayed every step. A device compiles the list
 * into what it executes; the TypeScript device interprets it, the CPU device walks it in native code.
 *
 * Nothing here changes from step to step. What does (how many tokens, which, at which positions, in which blocks, how to
 * sample) is read from the step inputs (step-inputs.ts). The row count of an operator is one of two numbers of the step:
 * `tokens` (every token of the batch) or `logitRows` (the tokens whose logits somebody wants).
 *
 * All activations are float32, row-major, dense: row r of a [rows, width] tensor starts at element r * width.
 */
export type Command =
  | EmbedCommand
  | RmsNormCommand
  | LinearCommand
  | HeadRmsNormCommand
  | RopeCommand
  | KvStoreCommand
  | AttentionCommand
  | RouteCommand
  | MapSlotsCommand
  | ExpertsCommand
  | GatedActivationCommand
  | GatherRowsCommand
  | SampleCommand;

export type RowCount = 'tokens' | 'logitRows';

/** Memory of the device, visible to JavaScript. `buffer` may be shared by many refs. */
export interface BufferRef {
  readonly buffer: ArrayBuffer;
  /** A multiple of 64. */
  readonly byteOffset: number;
  readonly byteLength: number;
}

/** output[t, :] = table[tokenIds[t], :]. */
export interface EmbedCommand {
  readonly op: 'embed';
  /** [vocabSize, width] bf16. */
  readonly table: BufferRef;
  readonly vocabSize: number;
  readonly width: number;
  /** [tokens, width] f32. */
  readonly output: BufferRef;
}

/** output[r, :] = input[r, :] / sqrt(mean(input[r, :]^2) + eps) * weight (Zhang and Sennrich 2019). May run in place. */
export interface RmsNormCommand {
  readonly op: 'rmsNorm';
  readonly rows: RowCount;
  readonly width: number;
  readonly eps: number;
  /** [rows, width] f32. */
  readonly input: BufferRef;
  /** [width] f32. */
  readonly weight: BufferRef;
  /** [rows, width] f32. */
  readonly output: BufferRef;
}

/** A bound LinearBackend kernel. */
export interface LinearCommand {
  readonly op: 'linear';
  readonly rows: RowCount;
  readonly name: string;
  readonly kernel: Kernel;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** [rows, inFeatures] f32. */
  readonly input: BufferRef;
  /** [rows, outFeatures] f32, overwritten, or added to when `accumulate`. */
  readonly output: BufferRef;
  readonly accumulate: boolean;
}

/**
 * RMSNorm over each head by itself, in place: for every token and head h, columns
 * [columnOffset + h * headDim, + headDim) of a row of `tensor`.
 */
export interface HeadRmsNormCommand {
  readonly op: 'headRmsNorm';
  /** [tokens, rowWidth] f32. */
  readonly tensor: BufferRef;
  readonly rowWidth: number;
  readonly columnOffset: number;
  readonly numHeads: number;
  readonly headDim: number;
  readonly eps: number;
  /** [headDim] f32. */
  readonly weight: BufferRef;
}

/**
 * Rotary position embedding in place on `numHeads` neighbouring heads of each row (Su et al. 2021), rotate-half form: pairs are
 * (i, i + rotaryDim/2) within the first rotaryDim columns of a head; `interleaved`: pairs are (2i, 2i+1).
 */
export interface RopeCommand {
  readonly op: 'rope';
  /** [tokens, rowWidth] f32. */
  readonly tensor: BufferRef;
  readonly rowWidth: number;
  readonly columnOffset: number;
  readonly numHeads: number;
  readonly headDim: number;
  readonly rotaryDim: number;
  readonly interleaved: boolean;
  /** [maxPositions, rotaryDim] f32: rotaryDim/2 cosines, then rotaryDim/2 sines, scaling included. */
  readonly table: BufferRef;
  readonly maxPositions: number;
}

/**
 * Keys and values of one layer, in blocks of `blockSize` positions; a head of a block is contiguous. Within it elements lie in pairs,
 * as instructions that multiply pairs want them: keys [numBlocks, numKvHeads, headDim / 2, blockSize, 2], two columns of each position side
 * by side; values [numBlocks, numKvHeads, blockSize / 2, headDim, 2], two positions of each column.
 */
export interface KvCacheLayer {
  readonly dtype: KvCacheDType;
  readonly keys: BufferRef;
  readonly values: BufferRef;
  readonly numBlocks: number;
  /** Even; the CPU device wants 16. */
  readonly blockSize: number;
  readonly numKvHeads: number;
  /** Even; the CPU device attends over multiples of 16. */
  readonly headDim: number;
  /** f8e4m3: stored = e4m3(clamp(x / scale, ±448)), used as stored * scale. bf16: 1. */
  readonly keyScale: number;
  readonly valueScale: number;
}

/** Writes keys and values of every token to its slot: slot s is position s % blockSize of block s / blockSize. */
export interface KvStoreCommand {
  readonly op: 'kvStore';
  /** [tokens, rowWidth] f32 with keys at keyOffset and values at valueOffset, [numKvHeads, headDim] each. */
  readonly tensor: BufferRef;
  readonly rowWidth: number;
  readonly keyOffset: number;
  readonly valueOffset: number;
  readonly cache: KvCacheLayer;
}

/**
 * Causal attention of every token over its sequence's blocks, grouped queries (Ainslie et al. 2023): query head h reads
 * key/value head h / (numHeads / numKvHeads). Keys and values are read as the cache stores them, also those of this step, and the
 * order of every sum depends only on positions, so that chunking and batching do not change a bit.
 */
export interface AttentionCommand {
  readonly op: 'attention';
  /** [tokens, rowWidth] f32, queries at queryOffset as [numHeads, headDim]. */
  readonly queries: BufferRef;
  readonly rowWidth: number;
  readonly queryOffset: number;
  readonly numHeads: number;
  readonly scale: number;
  readonly cache: KvCacheLayer;
  /** Only the last `slidingWindow` positions including the token's own; 0 = all. */
  readonly slidingWindow: number;
  /** [numHeads] f32: one extra logit per head in the softmax's denominator; undefined = none. */
  readonly sinks: BufferRef | undefined;
  /** [tokens, numHeads * headDim] f32. */
  readonly output: BufferRef;
}

/** Router: logits = input * weight^T (+ bias) in f32, then the routing method. Ties go to the lower expert id. */
export interface RouteCommand {
  readonly op: 'route';
  readonly hiddenSize: number;
  readonly numExperts: number;
  readonly topK: number;
  readonly method: RoutingMethod;
  /** [tokens, hiddenSize] f32. */
  readonly input: BufferRef;
  /** [numExperts, hiddenSize] f32. */
  readonly weight: BufferRef;
  /** [numExperts] f32. */
  readonly bias: BufferRef | undefined;
  /** [numExperts] f32, added for choosing only. */
  readonly correctionBias: BufferRef | undefined;
  /** [tokens, topK] i32, by falling weight. */
  readonly topkIds: BufferRef;
  /** [tokens, topK] f32. */
  readonly topkWeights: BufferRef;
}

/** topkSlots[t, j] = slots[topkIds[t, j]]: global expert ids to one group's slots, −1 for experts of other groups. */
export interface MapSlotsCommand {
  readonly op: 'mapSlots';
  readonly topK: number;
  readonly numExperts: number;
  /** [tokens, topK] i32. */
  readonly topkIds: BufferRef;
  /** [numExperts] i32. */
  readonly slots: BufferRef;
  /** [tokens, topK] i32. */
  readonly topkSlots: BufferRef;
}

/** A bound MoeBackend kernel. */
export interface ExpertsCommand {
  readonly op: 'experts';
  readonly name: string;
  readonly kernel: Kernel;
  readonly hiddenSize: number;
  readonly topK: number;
  /** [tokens, hiddenSize] f32. */
  readonly input: BufferRef;
  /** [tokens, topK] i32. */
  readonly topkSlots: BufferRef;
  /** [tokens, topK] f32. */
  readonly topkWeights: BufferRef;
  /** [tokens, hiddenSize] f32. */
  readonly output: BufferRef;
  readonly accumulate: boolean;
}

/** output[r, i] = activation(input[r, i], input[r, width + i]): gate first, then up. For dense layers. */
export interface GatedActivationCommand {
  readonly op: 'gatedActivation';
  readonly rows: RowCount;
  readonly activation: Activation;
  /** Columns of the output; the input has twice as many. */
  readonly width: number;
  readonly input: BufferRef;
  readonly output: BufferRef;
}

/** output[r, :] = input[logitRows[r], :]. */
export interface GatherRowsCommand {
  readonly op: 'gatherRows';
  readonly width: number;
  readonly input: BufferRef;
  /** [logitRows, width] f32. */
  readonly output: BufferRef;
}

/**
 * Logits to token ids and log-probabilities, one row per logit row, as its sampling parameters in the step inputs say. The rules are in
 * step-inputs.ts.
 *
 * A row without a distribution (NaN or +Infinity among its logits, or every token masked) gets token −1, log-probability NaN and rank 0,
 * so that one request fails and not the step.
 */
export interface SampleCommand {
  readonly op: 'sample';
  /** [logitRows, vocabSize] f32; may be changed in place. */
  readonly logits: BufferRef;
  readonly vocabSize: number;
  /** [maxLogitRows] i32. */
  readonly tokenIds: BufferRef;
  /** [maxLogitRows] f32: log-probability of tokenIds[r] (or of the row's target) under the unmodified logits. */
  readonly logprobs: BufferRef;
  /** [maxLogitRows] i32: rank of that token, 1 = the most probable; the lower id goes first among equals. */
  readonly ranks: BufferRef;
  /** Columns of the two tables below. */
  readonly maxTopLogprobs: number;
  /** [maxLogitRows, maxTopLogprobs] i32, by falling probability. */
  readonly topIds: BufferRef;
  /** [maxLogitRows, maxTopLogprobs] f32. */
  readonly topLogprobs: BufferRef;
}
