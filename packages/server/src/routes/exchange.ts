import type { Context } from 'koa';
import type { Logger } from 'pino';
import { Detokenizer } from '@moe-server/engine';
import type { GenerationRequest, SamplingParams, Usage } from '@moe-server/engine';
import { readJsonBody } from '../http/body-reader.js';
import { runChoice } from '../openai/choice.js';
import type { ChoiceDelta } from '../openai/choice.js';
import { EventStream } from '../openai/event-stream.js';
import { seedOfChoice } from '../openai/sampling.js';
import type { SamplingFields } from '../openai/wire-types.js';
import type { ServedModel, ServerContext } from './endpoint.js';

/** What the two generating endpoints share: one HTTP exchange that runs sequences and answers them whole or as a stream. */
export interface Exchange {
  readonly ctx: Context;
  readonly server: ServerContext;
  readonly served: ServedModel;
  /** Aborted when the client is gone before its answer. */
  readonly signal: AbortSignal;
  /** By performance.now(). */
  readonly arrivedAt: number;
}

/** The logger that carries the request's id. */
export function requestLogOf(ctx: Context): Logger {
  return ctx.state.log as Logger;
}

/** The JSON body, within the server's limits. @throws {MoeError} status 400, 408, 413 or 415. */
export function readBody(ctx: Context, { settings }: ServerContext): Promise<Readonly<Record<string, unknown>>> {
  return readJsonBody(ctx.req, { maxBytes: settings.maxBodyBytes, timeoutMs: settings.bodyTimeoutMs });
}

/** Begins to watch the connection. */
export function openExchange(ctx: Context, server: ServerContext, served: ServedModel, arrivedAt: number): Exchange {
  const controller = new AbortController();
  ctx.res.once('close', () => {
    if (!ctx.res.writableFinished) controller.abort();
  });
  // The client may have gone while its body was parsed.
  if (ctx.res.destroyed) controller.abort();
  return { ctx, server, served, signal: controller.signal, arrivedAt };
}

/** One prompt with its n sequences. */
export interface PromptJob {
  readonly promptTokenIds: readonly number[];
  readonly sampling: SamplingParams;
}

let numRequests = 0;

/**
 * Starts all sequences of the exchange and calls `onDelta` for each delta as it comes; sequences run side by side, deltas of one come
 * in order. When one fails the others are aborted, and the first error is thrown after all have ended.
 *
 * @param n - sequences per prompt; choice index = prompt * n + sequence.
 */
export async function runChoices(
  exchange: Exchange,
  fields: SamplingFields,
  jobs: readonly PromptJob[],
  n: number,
  onDelta: (index: number, delta: ChoiceDelta) => void,
): Promise<void> {
  const { server, served, arrivedAt } = exchange;
  const failure = new AbortController();
  const signal = AbortSignal.any([exchange.signal, failure.signal]);
  const stop = fields.stop ?? [];
  const includeStopString = fields.include_stop_str_in_output ?? false;
  const runOne = async (job: PromptJob, index: number): Promise<void> => {
    const request: GenerationRequest = {
      id: `r${String(++numRequests)}`,
      promptTokenIds: job.promptTokenIds,
      sampling: seedOfChoice(job.sampling, index % n),
    };
    const detokenizer = new Detokenizer(served.tokenizer, {
      skipSpecialTokens: fields.skip_special_tokens ?? true,
      stop: typeof stop === 'string' ? [stop] : stop,
      includeStop: includeStopString,
      minTokens: job.sampling.minTokens,
    });
    const run = { engine: server.engine, metrics: server.metrics, request, detokenizer, includeStopString, signal, arrivedAt };
    try {
      for await (const delta of runChoice(run)) onDelta(index, delta);
    } catch (thrown) {
      if (!failure.signal.aborted) failure.abort(thrown);
      throw thrown;
    }
  };
  const runs = jobs.flatMap((job, prompt) => Array.from({ length: n }, (_, sequence) => runOne(job, prompt * n + sequence)));
  await Promise.allSettled(runs);
  exchange.signal.throwIfAborted();
  if (failure.signal.aborted) throw failure.signal.reason;
}

/**
 * Answers with server-sent events. Errors before the first event propagate and become an HTTP status; later ones become an event.
 *
 * @param body - sends events until it returns.
 */
export async function streamAnswer(exchange: Exchange, body: (stream: EventStream) => Promise<void>): Promise<void> {
  const { ctx, server } = exchange;
  const { keepAliveMs, maxBufferedBytes } = server.settings;
  ctx.respond = false;
  const stream = new EventStream(ctx.res, { keepAliveMs, maxBufferedBytes });
  try {
    await body(stream);
    stream.end();
  } catch (thrown) {
    stream.stopKeepAlive();
    if (!stream.isOpen) throw thrown;
    ctx.state.error = thrown;
    stream.fail(thrown);
  }
}

/** Sums choices up the way the API counts: a prompt once, however many sequences answer it. */
export class UsageSum {
  private readonly byChoice = new Map<number, Usage>();

  constructor(private readonly n: number) {}

  set(index: number, usage: Usage): void {
    this.byChoice.set(index, usage);
  }

  toWire(): WireUsage {
    let promptTokens = 0;
    let completionTokens = 0;
    let cachedTokens = 0;
    for (const [index, usage] of this.byChoice) {
      completionTokens += usage.completionTokens;
      if (index % this.n !== 0) continue;
      promptTokens += usage.promptTokens;
      cachedTokens += usage.cachedTokens;
    }
    return wireUsage({ promptTokens, completionTokens, cachedTokens });
  }
}

export interface WireUsage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
}

/** Usage in the API's words. */
export function wireUsage({ promptTokens, completionTokens, cachedTokens }: Usage): WireUsage {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  };
}
