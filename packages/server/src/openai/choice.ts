import { MoeError } from '@moe-server/core';
import type { Detokenizer, EngineEvent, FinishReason, GenerationRequest, TokenOutput, Usage } from '@moe-server/engine';
import type { EngineClient } from '../engine/engine-client.js';
import type { ServerMetrics } from '../http/metrics.js';
import { notReady } from './errors.js';

/** What one sequence produced since the last delta: usually one token. */
export interface ChoiceDelta {
  readonly text: string;
  /** The token behind it; undefined in the last delta. */
  readonly token: TokenOutput | undefined;
  /** Only in the first delta and only if asked for: the prompt's log-probabilities. */
  readonly prompt: readonly (TokenOutput | undefined)[] | undefined;
  readonly finish: ChoiceFinish | undefined;
}

export interface ChoiceFinish {
  readonly reason: 'stop' | 'length';
  /** The stop string or stop token id that ended it, null for the model's own end. */
  readonly stopReason: string | number | null;
  readonly usage: Usage;
}

export interface ChoiceRun {
  readonly engine: EngineClient;
  readonly metrics: ServerMetrics;
  readonly request: GenerationRequest;
  readonly detokenizer: Detokenizer;
  /** The text of a stop token of the request is part of the answer. */
  readonly includeStopString: boolean;
  /** Aborted when the client is gone. */
  readonly signal: AbortSignal;
  /** When the HTTP request came, by performance.now(). */
  readonly arrivedAt: number;
}

/**
 * One sequence: engine events in, text out. Applies stop strings, which only exist on this side, and counts the sequence when it
 * has ended, however that was.
 *
 * @throws {MoeError} what the engine reports for this request; MOE_CAPACITY_NOT_READY when the engine ended it by itself.
 */
export async function* runChoice(run: ChoiceRun): AsyncGenerator<ChoiceDelta, void, undefined> {
  const { engine, metrics, request, signal } = run;
  const sequence = new SequenceText(run);
  const abort = (): void => {
    engine.abort(request.id);
  };
  signal.addEventListener('abort', abort, { once: true });
  let reason: FinishReason | 'error' = signal.aborted ? 'abort' : 'error';
  try {
    signal.throwIfAborted();
    for await (const events of engine.generate(request)) {
      for (let i = 0; i < events.length; i++) {
        const delta = sequence.take(events[i]!, events[i + 1]);
        if (delta === undefined) continue;
        if (delta.finish !== undefined) reason = delta.finish.reason;
        yield delta;
      }
    }
  } catch (thrown) {
    if (signal.aborted) reason = 'abort';
    throw thrown;
  } finally {
    if (reason === 'error' && signal.aborted) reason = 'abort';
    signal.removeEventListener('abort', abort);
    metrics.countSequence({
      reason,
      usage: sequence.usage,
      timeToFirstTokenSeconds: sequence.timeToFirstTokenSeconds,
      totalSeconds: (performance.now() - run.arrivedAt) / 1000,
    });
  }
}

/** State of one sequence on its way to text. */
class SequenceText {
  usage: Usage;
  timeToFirstTokenSeconds: number | undefined;
  private lastTokenAt = 0;
  private numTokens = 0;
  private stopString: string | undefined;
  private prompt: readonly (TokenOutput | undefined)[] | undefined;

  constructor(private readonly run: ChoiceRun) {
    this.usage = { promptTokens: run.request.promptTokenIds.length, completionTokens: 0, cachedTokens: 0 };
  }

  /** @param following - the next event of the same step: tells whether a token is the one that ended the sequence. */
  take(event: EngineEvent, following: EngineEvent | undefined): ChoiceDelta | undefined {
    switch (event.type) {
      case 'prompt':
        this.prompt = event.tokens;
        return undefined;
      case 'token':
        return this.takeToken(event.token, following);
      case 'finish':
        return this.takeFinish(event);
      case 'error':
        throw MoeError.fromJSON(event.error);
    }
  }

  private takeToken(token: TokenOutput, following: EngineEvent | undefined): ChoiceDelta | undefined {
    // Tokens that were on their way when the stop string was found.
    if (this.stopString !== undefined) return undefined;
    this.measure();
    this.numTokens++;
    this.usage = { ...this.usage, completionTokens: this.numTokens };
    const isStopToken = following?.type === 'finish' && following.stopTokenId === token.tokenId;
    const isHidden = isStopToken && !(this.run.includeStopString && this.run.request.sampling.stopTokenIds.includes(token.tokenId));
    const { text, stop } = isHidden ? { text: '', stop: undefined } : this.run.detokenizer.push(token.tokenId);
    if (stop !== undefined) {
      this.stopString = stop;
      // Nothing to abort when this token was the last anyway.
      if (following?.type !== 'finish') this.run.engine.abort(this.run.request.id);
    }
    return { text, token, prompt: this.takePrompt(), finish: undefined };
  }

  private takeFinish(event: Extract<EngineEvent, { type: 'finish' }>): ChoiceDelta {
    const { stopString } = this;
    this.usage = { ...event.usage, completionTokens: this.numTokens };
    const finish = (reason: 'stop' | 'length', stopReason: string | number | null, text: string): ChoiceDelta => ({
      text,
      token: undefined,
      prompt: this.takePrompt(),
      finish: { reason, stopReason, usage: this.usage },
    });
    if (stopString !== undefined) return finish('stop', stopString, '');
    if (event.reason === 'abort') {
      this.run.signal.throwIfAborted();
      throw notReady('The engine ended this request because the server is shutting down.', 5);
    }
    const { stopTokenId } = event;
    const isOwn = stopTokenId !== undefined && this.run.request.sampling.stopTokenIds.includes(stopTokenId);
    const rest = this.run.detokenizer.finish();
    if (rest.stop !== undefined) return finish('stop', rest.stop, rest.text);
    return finish(event.reason, isOwn ? stopTokenId : null, rest.text);
  }

  private takePrompt(): readonly (TokenOutput | undefined)[] | undefined {
    const { prompt } = this;
    this.prompt = undefined;
    return prompt;
  }

  private measure(): void {
    const now = performance.now();
    if (this.timeToFirstTokenSeconds === undefined) this.timeToFirstTokenSeconds = (now - this.run.arrivedAt) / 1000;
    else this.run.metrics.observeTokenGap((now - this.lastTokenAt) / 1000);
    this.lastTokenAt = now;
  }
}

/** The deltas of one sequence, put together again for an answer that is sent whole. */
export class ChoiceText {
  text = '';
  readonly tokens: TokenOutput[] = [];
  prompt: readonly (TokenOutput | undefined)[] | undefined;
  finish: ChoiceFinish | undefined;

  add(delta: ChoiceDelta): void {
    this.text += delta.text;
    if (delta.token !== undefined) this.tokens.push(delta.token);
    this.prompt ??= delta.prompt;
    this.finish ??= delta.finish;
  }
}
