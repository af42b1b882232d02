import { MoeError } from '@moe-server/core';
import type { Batch, BatchSequence, LogitRow, RowOutput, StepOutput } from './batch.js';
import type { BufferRef, Command, SampleCommand } from './device/commands.js';
import type { Device, Program } from './device/device.js';
import type { StepLimits } from './device/step-inputs.js';
import { StepInputs, layoutStep } from './device/step-inputs.js';
import type { KvCache } from './kv-cache.js';
import { StepEncoder } from './layers/step-encoder.js';
import type { Model } from './models/model.js';

export interface ModelRunnerOptions {
  readonly device: Device;
  readonly model: Model;
  readonly cache: KvCache;
  readonly limits: StepLimits;
  /** The most alternatives a row can ask log-probabilities of; default 20. */
  readonly maxTopLogprobs?: number;
}

/** What {@link ModelRunner.execute} adds when asked for logits. */
export interface StepLogits {
  /** [vocabSize] of every logit row of the batch, in order, before sampling changes them. */
  readonly logits: readonly Float32Array[];
}

/**
 * Runs batches: flattens one into the step inputs, replays the recorded step, reads what was sampled. The step is recorded once, when
 * the runner is made; a step allocates nothing but its small results.
 */
export class ModelRunner {
  readonly limits: StepLimits;
  readonly vocabSize: number;
  readonly maxTopLogprobs: number;
  /** Bytes of activations, beside weights and cache. */
  readonly activationBytes: number;
  readonly #device: Device;
  readonly #blockSize: number;
  readonly #inputs: StepInputs;
  readonly #commands: readonly Command[];
  readonly #outputs: SampleOutputs;
  readonly #step: Program;
  #parts: { readonly forward: Program; readonly sample: Program } | undefined;
  #isRunning = false;

  constructor({ device, model, cache, limits, maxTopLogprobs = 20 }: ModelRunnerOptions) {
    this.limits = limits;
    this.vocabSize = model.config.vocabSize;
    this.maxTopLogprobs = Math.min(maxTopLogprobs, this.vocabSize);
    this.#device = device;
    this.#blockSize = cache.shape.blockSize;
    const layout = layoutStep(limits);
    const memory = device.allocate(layout.byteLength, 'step inputs');
    this.#inputs = new StepInputs(layout, memory.buffer);
    const encoder = new StepEncoder(device, limits);
    const logits = model.encode(encoder, cache.layers);
    const sample = encodeSample(encoder, logits, this.vocabSize, this.maxTopLogprobs);
    this.#commands = encoder.finish();
    this.#outputs = new SampleOutputs(sample, limits.maxLogitRows);
    this.activationBytes = encoder.bufferBytes;
    this.#step = device.compile(this.#commands, layout);
  }

  /** Scratch memory that the kernels share, in bytes. */
  get workspaceBytes(): number {
    return this.#step.workspaceBytes;
  }

  /**
   * Runs one step. Reads the batch before its first await; one call at a time. A row without a usable logit has tokenId −1.
   *
   * @throws {MoeError} MOE_INTERNAL when the batch exceeds the limits; what the device throws.
   */
  async execute(batch: Batch): Promise<StepOutput>;
  async execute(batch: Batch, options: { readonly logits: true }): Promise<StepOutput & StepLogits>;
  async execute(batch: Batch, options?: { readonly logits: true }): Promise<StepOutput | (StepOutput & StepLogits)> {
    if (this.#isRunning) throw new MoeError('MOE_INTERNAL', 'A step was started while another one runs.');
    this.#isRunning = true;
    try {
      const numRows = this.#fill(batch);
      if (options === undefined) {
        await this.#device.submit(this.#step, this.#inputs);
        return { rows: this.#outputs.read(batch) };
      }
      // In two parts, because sampling may change the logits in place.
      const { forward, sample } = this.#compileParts();
      await this.#device.submit(forward, this.#inputs);
      const logits = this.#outputs.copyLogits(numRows);
      await this.#device.submit(sample, this.#inputs);
      return { rows: this.#outputs.read(batch), logits };
    } finally {
      this.#isRunning = false;
    }
  }

  /** Frees the programs; weights, cache and device are others'. */
  dispose(): void {
    this.#step.dispose();
    this.#parts?.forward.dispose();
    this.#parts?.sample.dispose();
  }

  #compileParts(): { readonly forward: Program; readonly sample: Program } {
    this.#parts ??= {
      forward: this.#device.compile(this.#commands.slice(0, -1), this.#inputs.layout),
      sample: this.#device.compile(this.#commands.slice(-1), this.#inputs.layout),
    };
    return this.#parts;
  }

  /** Writes the step inputs; returns the number of logit rows. */
  #fill(batch: Batch): number {
    const inputs = this.#inputs;
    let numTokens = 0;
    let numRows = 0;
    inputs.adjustmentStarts[0] = 0;
    inputs.queryStarts[0] = 0;
    checkLimit('sequences', batch.sequences.length, this.limits.maxNumSeqs);
    for (const [index, sequence] of batch.sequences.entries()) {
      checkLimit('tokens', numTokens + sequence.tokenIds.length, this.limits.maxNumTokens);
      checkLimit('logit rows', numRows + sequence.rows.length, this.limits.maxLogitRows);
      for (const row of sequence.rows) this.#fillRow(numRows++, row, numTokens + row.tokenIndex);
      numTokens = this.#fillTokens(sequence, index, numTokens);
    }
    inputs.header[0] = numTokens;
    inputs.header[1] = batch.sequences.length;
    inputs.header[2] = numRows;
    return numRows;
  }

  /** Returns the number of tokens up to and with this sequence. */
  #fillTokens({ tokenIds, startPosition, blockTable }: BatchSequence, index: number, firstToken: number): number {
    const inputs = this.#inputs;
    const blockSize = this.#blockSize;
    const contextLength = startPosition + tokenIds.length;
    const numBlocks = Math.ceil(contextLength / blockSize);
    checkLimit('blocks of one sequence', numBlocks, this.limits.maxBlocksPerSeq);
    if (blockTable.length < numBlocks) {
      throw new MoeError('MOE_INTERNAL', `A sequence of ${String(contextLength)} positions came with ${String(blockTable.length)} blocks.`);
    }
    for (let i = 0; i < numBlocks; i++) inputs.blockTables[index * this.limits.maxBlocksPerSeq + i] = blockTable[i] ?? 0;
    for (const [i, tokenId] of tokenIds.entries()) {
      const position = startPosition + i;
      inputs.tokenIds[firstToken + i] = tokenId;
      inputs.positions[firstToken + i] = position;
      inputs.slots[firstToken + i] = (blockTable[Math.floor(position / blockSize)] ?? 0) * blockSize + (position % blockSize);
    }
    inputs.contextLengths[index] = contextLength;
    inputs.queryStarts[index + 1] = firstToken + tokenIds.length;
    return firstToken + tokenIds.length;
  }

  #fillRow(row: number, logitRow: LogitRow, token: number): void {
    const inputs = this.#inputs;
    inputs.logitRows[row] = token;
    inputs.targets[row] = logitRow.target;
    inputs.temperatures[row] = logitRow.temperature;
    inputs.topKs[row] = logitRow.topK;
    inputs.topPs[row] = logitRow.topP;
    inputs.minPs[row] = logitRow.minP;
    inputs.repetitionPenalties[row] = logitRow.repetitionPenalty;
    inputs.presencePenalties[row] = logitRow.presencePenalty;
    inputs.frequencyPenalties[row] = logitRow.frequencyPenalty;
    inputs.seeds[row] = logitRow.seed;
    inputs.counters[row] = logitRow.counter;
    inputs.numTopLogprobs[row] = Math.min(logitRow.numTopLogprobs, this.maxTopLogprobs);
    let next = inputs.adjustmentStarts[row] ?? 0;
    checkLimit('logit adjustments', next + logitRow.adjustments.length, this.limits.maxAdjustments);
    for (const { tokenId, bias, outputCount, isSeen } of logitRow.adjustments) {
      inputs.adjustmentWords[4 * next] = tokenId;
      inputs.adjustmentBiases[4 * next + 1] = bias;
      inputs.adjustmentWords[4 * next + 2] = outputCount;
      inputs.adjustmentWords[4 * next + 3] = isSeen ? 1 : 0;
      next++;
    }
    inputs.adjustmentStarts[row + 1] = next;
  }
}

function checkLimit(what: string, actual: number, limit: number): void {
  if (actual <= limit) return;
  throw new MoeError('MOE_INTERNAL', `A step with ${String(actual)} ${what} exceeds the limit of ${String(limit)}.`, {
    what,
    actual,
    limit,
  });
}

function encodeSample(encoder: StepEncoder, logits: BufferRef, vocabSize: number, maxTopLogprobs: number): SampleCommand {
  const command: SampleCommand = {
    op: 'sample',
    logits,
    vocabSize,
    tokenIds: encoder.buffer('sampled token ids', 'logitRows', 1),
    logprobs: encoder.buffer('sampled logprobs', 'logitRows', 1),
    ranks: encoder.buffer('sampled ranks', 'logitRows', 1),
    maxTopLogprobs,
    topIds: encoder.buffer('top ids', 'logitRows', maxTopLogprobs),
    topLogprobs: encoder.buffer('top logprobs', 'logitRows', maxTopLogprobs),
  };
  encoder.append(command);
  return command;
}

/** Views of what the sample command writes. */
class SampleOutputs {
  readonly #vocabSize: number;
  readonly #maxTopLogprobs: number;
  readonly #logits: Float32Array;
  readonly #tokenIds: Int32Array;
  readonly #logprobs: Float32Array;
  readonly #ranks: Int32Array;
  readonly #topIds: Int32Array;
  readonly #topLogprobs: Float32Array;

  constructor(command: SampleCommand, maxRows: number) {
    const floats = ({ buffer, byteOffset }: BufferRef, width: number): Float32Array =>
      new Float32Array(buffer, byteOffset, maxRows * width);
    const ints = ({ buffer, byteOffset }: BufferRef, width: number): Int32Array => new Int32Array(buffer, byteOffset, maxRows * width);
    this.#vocabSize = command.vocabSize;
    this.#maxTopLogprobs = command.maxTopLogprobs;
    this.#logits = floats(command.logits, command.vocabSize);
    this.#tokenIds = ints(command.tokenIds, 1);
    this.#logprobs = floats(command.logprobs, 1);
    this.#ranks = ints(command.ranks, 1);
    this.#topIds = ints(command.topIds, command.maxTopLogprobs);
    this.#topLogprobs = floats(command.topLogprobs, command.maxTopLogprobs);
  }

  read(batch: Batch): RowOutput[][] {
    let row = 0;
    return batch.sequences.map((sequence) => sequence.rows.map(({ numTopLogprobs }) => this.#readRow(row++, numTopLogprobs)));
  }

  copyLogits(numRows: number): Float32Array[] {
    return Array.from({ length: numRows }, (_, row) => this.#logits.slice(row * this.#vocabSize, (row + 1) * this.#vocabSize));
  }

  #readRow(row: number, numTopLogprobs: number): RowOutput {
    const first = row * this.#maxTopLogprobs;
    const topLogprobs = [];
    for (let i = first; i < first + Math.min(numTopLogprobs, this.#maxTopLogprobs); i++) {
      topLogprobs.push({ tokenId: this.#topIds[i] ?? -1, logprob: this.#topLogprobs[i] ?? NaN });
    }
    return { tokenId: this.#tokenIds[row] ?? -1, logprob: this.#logprobs[row] ?? NaN, rank: this.#ranks[row] ?? 0, topLogprobs };
  }
}
