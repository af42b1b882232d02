import { randomBytes } from 'node:crypto';
import { isMoeError, messageOf, MoeError } from '@moe-server/core';
import type { RowOutput, StepOutput } from './batch.js';
import { BlockManager } from './block-manager.js';
import type { EngineConfig, EngineOptions, ModelRunnerLike } from './engine-config.js';
import { resolveEngineConfig } from './engine-config.js';
import type { EngineStats, MetricsDelta } from './metrics.js';
import { EngineMetrics } from './metrics.js';
import type { EngineEvent, FinishReason, GenerationRequest } from './request.js';
import type { ScheduledStep } from './scheduler.js';
import { Scheduler } from './scheduler.js';
import { Sequence } from './sequence.js';

/** Must not throw: what it throws ends the loop, and stop() rejects with it. */
export type EngineListener = (event: EngineEvent) => void;

/**
 * Runs requests on one model: schedule → run → sample → emit, again and again while there is work.
 *
 * ```ts
 * const engine = new Engine({ runner, numBlocks: 4096, blockSize: 16, maxModelLen: 4096, eosTokenIds: [2] });
 * engine.onEvent((event) => { ... });
 * engine.start();
 * engine.addRequest({ id: 'a', promptTokenIds: [1, 2, 3], sampling });
 * await engine.drain();
 * ```
 *
 * Events of a request come in this order: `prompt` (when asked for), `token`s, then exactly one of `finish` and `error`. They are emitted while the next
 * step already runs, so a listener's work costs no time between steps.
 */
export class Engine {
  readonly config: EngineConfig;
  readonly #runner: ModelRunnerLike;
  readonly #clock: () => number;
  readonly #randomSeed: () => bigint;
  readonly #blocks: BlockManager;
  readonly #scheduler: Scheduler;
  readonly #metrics = new EngineMetrics();
  readonly #sequences = new Map<string, Sequence>();
  readonly #listeners: EngineListener[] = [];
  #pendingEvents: EngineEvent[] = [];
  #isEmitting = false;
  #numArrived = 0;
  #state: 'idle' | 'running' | 'draining' | 'stopped' = 'idle';
  #loop: Promise<void> | undefined;
  /** Wakes the loop when it waits for work. */
  #wake: (() => void) | undefined;
  /** The event loop has turned since the last submit, so messages and timers were served. */
  #hasTurned = true;
  #stepEndedAt: number | undefined;

  /** @throws {MoeError} MOE_USAGE when the options contradict each other or the runner. */
  constructor(options: EngineOptions) {
    this.config = resolveEngineConfig(options);
    this.#runner = options.runner;
    this.#clock = options.clock ?? (() => performance.now());
    this.#randomSeed = options.randomSeed ?? (() => randomBytes(8).readBigUInt64LE());
    this.#blocks = new BlockManager(this.config);
    this.#scheduler = new Scheduler(this.config, this.#blocks);
  }

  onEvent(listener: EngineListener): void {
    this.#listeners.push(listener);
  }

  /**
   * Queues a request. Its events begin after this returns.
   *
   * @throws {MoeError} MOE_REQUEST_INVALID, MOE_REQUEST_CONTEXT_LENGTH, or MOE_CAPACITY_NOT_READY once the engine drains or stops.
   */
  addRequest(request: GenerationRequest): void {
    if (this.#state === 'draining' || this.#state === 'stopped') {
      throw new MoeError('MOE_CAPACITY_NOT_READY', 'the engine is shutting down and takes no new requests');
    }
    this.#validate(request);
    const sequence = new Sequence({
      request,
      arrival: this.#numArrived++,
      randomSeed: this.#randomSeed(),
      eosTokenIds: this.config.eosTokenIds,
      arrivedAt: this.#clock(),
    });
    this.#sequences.set(request.id, sequence);
    this.#scheduler.add(sequence);
    this.#wakeUp();
  }

  /** Ends a request with reason `abort`, wherever it is; its blocks are free at once. Unknown ids are no error: the request may just have ended. */
  abort(requestId: string): void {
    const sequence = this.#sequences.get(requestId);
    if (sequence === undefined) return;
    this.#finish(sequence, 'abort', undefined);
    this.#emitPending();
    this.#wakeUp();
  }

  /** Begins to work on requests, also on those added before. */
  start(): void {
    if (this.#state !== 'idle') return;
    this.#state = 'running';
    this.#loop = this.#run();
  }

  /** Refuses new requests; resolves when all that are alive have ended. */
  async drain(): Promise<void> {
    if (this.#state === 'idle' && this.#sequences.size > 0) this.start();
    if (this.#state !== 'stopped') this.#state = 'draining';
    this.#wakeUp();
    await this.#loop;
  }

  /** Aborts every request and resolves when the step that runs has ended. */
  async stop(): Promise<void> {
    this.#state = 'stopped';
    for (const sequence of this.#sequences.values()) this.#finish(sequence, 'abort', undefined);
    this.#emitPending();
    this.#wakeUp();
    await this.#loop;
  }

  stats(): EngineStats {
    const { counters, numRunning, numWaiting } = this.#scheduler;
    const { promptTokens, generationTokens, numSteps, numFailedSteps, numCorruptedRequests, betweenStepsMs, finished } = this.#metrics;
    return {
      numRunning,
      numWaiting,
      kvCacheUsage: this.#blocks.usage,
      numBlocks: this.#blocks.numBlocks,
      blockSize: this.#blocks.blockSize,
      ...counters,
      promptTokens,
      generationTokens,
      numSteps,
      numFailedSteps,
      numCorruptedRequests,
      finished: { ...finished },
      betweenStepsMs,
    };
  }

  /** What was observed since the last call, for histograms. */
  takeMetrics(): MetricsDelta {
    return this.#metrics.take();
  }

  async #run(): Promise<void> {
    while (this.#state !== 'stopped') {
      const step = this.#scheduler.schedule();
      for (const { sequence, error } of this.#scheduler.takeRefused()) this.#fail(sequence, error);
      if (step !== undefined) {
        await this.#step(step);
        continue;
      }
      this.#emitPending();
      this.#stepEndedAt = undefined;
      // A listener may have added or aborted requests.
      if (this.#scheduler.numWaiting + this.#scheduler.numRunning > 0) continue;
      if (this.#state !== 'running') break;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    this.#emitPending();
  }

  async #step(step: ScheduledStep): Promise<void> {
    const startedAt = this.#clock();
    // Begun before anything else: what can be done beside the step must not hold it up.
    const execution = this.#execute(step);
    if (this.#stepEndedAt !== undefined) this.#metrics.betweenStepsMs += startedAt - this.#stepEndedAt;
    this.#metrics.stepStarted(step.sequences, startedAt);
    this.#hasTurned = false;
    setImmediate(this.#noteTurn);
    this.#emitPending();
    let output: StepOutput;
    try {
      output = await execution;
    } catch (thrown) {
      output = await this.#executeSingly(step, thrown);
    }
    // A device that computes on this thread resolves without ever letting timers and messages in.
    if (this.#isTurnOverdue()) await new Promise<void>((resolve) => setImmediate(resolve));
    const now = this.#clock();
    this.#stepEndedAt = now;
    this.#scheduler.complete(step);
    for (let i = 0; i < step.sequences.length; i++) {
      const sequence = step.sequences[i];
      // Aborted while the step ran: its outputs belong to nobody.
      if (sequence?.status === 'running') this.#take(sequence, step.batch.sequences[i]?.rows.length ?? 0, output.rows[i] ?? [], now);
    }
  }

  /** Turns what a runner throws before its first await into a rejection, so that nothing a listener throws is taken for it. */
  async #execute(step: ScheduledStep): Promise<StepOutput> {
    return await this.#runner.execute(step.batch);
  }

  readonly #noteTurn = (): void => {
    this.#hasTurned = true;
  };

  #isTurnOverdue(): boolean {
    return !this.#hasTurned;
  }

  /** Outputs of one sequence: scored prompt tokens first, then the new token. */
  #take(sequence: Sequence, numRows: number, rows: readonly RowOutput[], now: number): void {
    if (rows.length !== numRows) {
      const message = `the runner returned ${String(rows.length)} of ${String(numRows)} logit rows`;
      this.#fail(sequence, new MoeError('MOE_INTERNAL', message, { requestId: sequence.id }));
      return;
    }
    for (const row of rows) {
      if (row.tokenId < 0 || Number.isNaN(row.logprob)) {
        this.#metrics.numCorruptedRequests++;
        this.#fail(sequence, this.#unusableLogits(sequence));
        return;
      }
      if (!sequence.isPromptScored) {
        sequence.addPromptOutput(row);
        continue;
      }
      this.#emitPrompt(sequence);
      const token = sequence.addToken(row);
      this.#metrics.tokenGenerated(sequence, now);
      this.#pendingEvents.push({ type: 'token', requestId: sequence.id, token });
      this.#finishAfter(sequence, row.tokenId);
    }
    if (sequence.sampling.maxTokens === 0 && sequence.numPendingTokens === 0) {
      this.#emitPrompt(sequence);
      this.#finish(sequence, 'length', undefined);
    }
  }

  #finishAfter(sequence: Sequence, tokenId: number): void {
    const { minTokens, maxTokens } = sequence.sampling;
    if (sequence.numGeneratedTokens > minTokens && sequence.isEndToken(tokenId)) this.#finish(sequence, 'stop', tokenId);
    else if (sequence.numGeneratedTokens >= maxTokens) this.#finish(sequence, 'length', undefined);
    else if (sequence.tokenIds.length >= this.config.maxModelLen) this.#finish(sequence, 'length', undefined);
  }

  /** Before the first token, once. */
  #emitPrompt(sequence: Sequence): void {
    if (sequence.promptOutputs === undefined || sequence.numGeneratedTokens > 0) return;
    this.#pendingEvents.push({ type: 'prompt', requestId: sequence.id, tokens: sequence.promptOutputs });
  }

  #finish(sequence: Sequence, reason: FinishReason, stopTokenId: number | undefined): void {
    this.#end(sequence, reason);
    this.#pendingEvents.push({ type: 'finish', requestId: sequence.id, reason, stopTokenId, usage: sequence.usage });
  }

  #fail(sequence: Sequence, error: MoeError): void {
    this.#end(sequence, 'error');
    this.#pendingEvents.push({ type: 'error', requestId: sequence.id, error: error.toJSON() });
  }

  #end(sequence: Sequence, reason: FinishReason | 'error'): void {
    if (sequence.status !== 'finished') this.#scheduler.finish(sequence);
    this.#sequences.delete(sequence.id);
    this.#metrics.requestEnded(sequence, reason, this.#clock());
  }

  /**
   * A step may fail for the sake of one sequence. Each is run by itself, which gives the same bits, and only those that fail again end.
   */
  async #executeSingly(step: ScheduledStep, thrown: unknown): Promise<StepOutput> {
    this.#metrics.numFailedSteps++;
    const isAlone = step.sequences.length === 1;
    const rows: (readonly RowOutput[])[] = [];
    for (const [i, sequence] of step.sequences.entries()) {
      const batched = step.batch.sequences[i];
      try {
        if (isAlone || batched === undefined) throw thrown;
        const isWanted = sequence.status === 'running';
        const alone = isWanted ? await this.#runner.execute({ sequences: [batched] }) : undefined;
        rows.push(alone?.rows[0] ?? []);
      } catch (failure) {
        rows.push([]);
        if (sequence.status === 'running') this.#fail(sequence, asStepError(failure));
      }
    }
    return { rows };
  }

  #emitPending(): void {
    // A listener may cause further events; they come after those that are already here.
    if (this.#isEmitting) return;
    this.#isEmitting = true;
    try {
      while (this.#pendingEvents.length > 0) {
        const events = this.#pendingEvents;
        this.#pendingEvents = [];
        for (const event of events) for (const listener of this.#listeners) listener(event);
      }
    } finally {
      this.#isEmitting = false;
    }
  }

  #wakeUp(): void {
    this.#wake?.();
    this.#wake = undefined;
  }

  #unusableLogits(sequence: Sequence): MoeError {
    const { numMasked } = sequence.adjustments;
    const details = { requestId: sequence.id, position: sequence.tokenIds.length };
    return numMasked >= this.config.vocabSize
      ? new MoeError('MOE_REQUEST_INVALID', 'logit_bias and min_tokens together leave no token to choose from', {
          ...details,
          param: 'logit_bias',
        })
      : new MoeError('MOE_DEVICE_KERNEL', 'the model computed logits that are not numbers; this request cannot go on', details);
  }

  #validate({ id, promptTokenIds, sampling }: GenerationRequest): void {
    const { vocabSize, maxModelLen } = this.config;
    const numTokens = promptTokenIds.length;
    if (this.#sequences.has(id)) throw invalid('request_id', `a request with the id ${JSON.stringify(id)} is still running`);
    if (numTokens === 0) throw invalid('prompt', 'the prompt has no tokens; it needs at least one');
    for (let i = 0; i < numTokens; i++) {
      const tokenId = promptTokenIds[i] ?? -1;
      if (Number.isInteger(tokenId) && tokenId >= 0 && tokenId < vocabSize) continue;
      throw invalid(
        'prompt',
        `prompt token ${String(i)} is ${String(tokenId)}; token ids are whole numbers from 0 to ${String(vocabSize - 1)}`,
      );
    }
    if (sampling.maxTokens === 0 && sampling.promptLogprobs === undefined) {
      throw invalid('max_tokens', 'max_tokens 0 is for scoring a prompt; ask for prompt log-probabilities (echo with logprobs) too');
    }
    if (numTokens + Math.min(sampling.maxTokens, 1) > maxModelLen) {
      const message = `the prompt has ${String(numTokens)} tokens and leaves no room for an answer in this model's context of ${String(maxModelLen)} tokens`;
      throw new MoeError('MOE_REQUEST_CONTEXT_LENGTH', message, { param: 'prompt', promptTokens: numTokens, maxModelLen });
    }
  }
}

function invalid(param: string, message: string): MoeError {
  return new MoeError('MOE_REQUEST_INVALID', message, { param });
}

function asStepError(thrown: unknown): MoeError {
  if (isMoeError(thrown)) return thrown;
  return new MoeError('MOE_INTERNAL', `the step failed: ${messageOf(thrown)}`, {}, { cause: thrown });
}
