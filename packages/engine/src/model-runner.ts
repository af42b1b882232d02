import { MoeError } from '@moe-server/core';
import type { Batch, BatchSequence, LogitRow, StepOutput } from './batch.js';
import type { BufferRef } from './device/commands.js';
import type { Device, StepTimes } from './device/device.js';
import type { StepLimits } from './device/step-inputs.js';
import { StepInputs, layoutStep } from './device/step-inputs.js';
import type { KvCache } from './kv-cache.js';
import { ActivationBuffers } from './layers/activation-buffers.js';
import { Sampler } from './layers/sampler.js';
import type { StepSize } from './layers/step-encoder.js';
import { StepEncoder } from './layers/step-encoder.js';
import type { Model } from './models/model.js';
import { RecordedStep } from './recorded-step.js';

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
 * Runs batches: flattens one into the step inputs, replays a recorded step, reads what was sampled. A step is recorded when the runner is
 * made, and again only where a layer has another kernel for another number of tokens; beside that, a step allocates nothing but its
 * small results.
 */
export class ModelRunner {
  readonly limits: StepLimits;
  readonly vocabSize: number;
  readonly maxTopLogprobs: number;
  readonly #device: Device;
  readonly #model: Model;
  readonly #cache: KvCache;
  readonly #inputs: StepInputs;
  readonly #buffers: ActivationBuffers;
  readonly #sampler: Sampler;
  readonly #steps: RecordedStep[] = [];
  #isRunning = false;

  constructor({ device, model, cache, limits, maxTopLogprobs = 20 }: ModelRunnerOptions) {
    this.limits = limits;
    this.vocabSize = model.config.vocabSize;
    this.maxTopLogprobs = Math.min(maxTopLogprobs, this.vocabSize);
    this.#device = device;
    this.#model = model;
    this.#cache = cache;
    const layout = layoutStep(limits);
    this.#inputs = new StepInputs(layout, wholeBuffer(device.allocate(layout.byteLength, 'step inputs')));
    this.#buffers = new ActivationBuffers(device, limits);
    this.#sampler = new Sampler(this.#buffers, limits, this.vocabSize, this.maxTopLogprobs);
    // So that what cannot run is refused now, and decoding does not begin with a compilation.
    this.#stepFor({ tokens: limits.maxNumTokens, logitRows: limits.maxLogitRows });
    this.#stepFor({ tokens: 1, logitRows: 1 });
  }

  /** Bytes of activations, beside weights and cache. */
  get activationBytes(): number {
    return this.#buffers.byteLength;
  }

  /** Scratch memory that the kernels share, in bytes. */
  get workspaceBytes(): number {
    return this.#steps.reduce((sum, { whole }) => sum + whole.workspaceBytes, 0);
  }

  /** Different experts that routing chose, added up over layers and all steps so far. */
  get numExpertsChosen(): number {
    return this.#device.numExpertsChosen;
  }

  /** When the device computed the last step that ended. */
  get lastStep(): StepTimes {
    return this.#device.lastStep;
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
      const size = this.#fill(batch);
      const step = this.#stepFor(size);
      if (options === undefined) {
        await this.#device.submit(step.whole, this.#inputs);
        return { rows: this.#sampler.read(batch) };
      }
      // In two parts, because sampling may change the logits in place.
      await this.#device.submit(step.forward(), this.#inputs);
      const logits = this.#sampler.copyLogits(step.logits, size.logitRows);
      await this.#device.submit(step.sample(), this.#inputs);
      return { rows: this.#sampler.read(batch), logits };
    } finally {
      this.#isRunning = false;
    }
  }

  /** Frees the programs; weights, cache and device are others'. */
  dispose(): void {
    for (const step of this.#steps) step.dispose();
    this.#steps.length = 0;
  }

  #stepFor(size: StepSize): RecordedStep {
    const known = this.#steps.find((step) => step.holdsFor(size));
    if (known !== undefined) return known;
    const encoder = new StepEncoder(this.#buffers, size);
    const logits = this.#model.encode(encoder, this.#cache.layers);
    this.#sampler.encode(encoder, logits);
    const step = new RecordedStep(this.#device, this.#inputs.layout, encoder.finish(), logits);
    this.#steps.push(step);
    return step;
  }

  /** Writes the step inputs. */
  #fill(batch: Batch): StepSize {
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
    return { tokens: numTokens, logitRows: numRows };
  }

  /** Returns the number of tokens up to and with this sequence. */
  #fillTokens({ tokenIds, startPosition, blockTable }: BatchSequence, index: number, firstToken: number): number {
    const inputs = this.#inputs;
    const { blockSize } = this.#cache.shape;
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

/** Step inputs are views of a whole buffer. */
function wholeBuffer({ buffer, byteOffset }: BufferRef): ArrayBuffer {
  if (byteOffset !== 0) throw new MoeError('MOE_INTERNAL', 'The device placed the step inputs inside another buffer.');
  return buffer;
}
