import type { EngineEvent, GenerationRequest, Tokenizer, TokenOutput } from '@moe-server/engine';
import pino from 'pino';
import type { EngineClient } from '../src/engine/engine-client.js';
import { noStats } from '../src/engine/engine-protocol.js';
import type { ModelInfo } from '../src/engine/engine-protocol.js';
import { Admission } from '../src/http/admission.js';
import { createApp } from '../src/http/app.js';
import { listen } from '../src/http/http-server.js';
import { Lifecycle } from '../src/http/lifecycle.js';
import { ServerMetrics } from '../src/http/metrics.js';
import { requestError } from '../src/openai/errors.js';
import type { HttpSettings, ServedModel } from '../src/routes/endpoint.js';
import { byteModel } from './byte-model.js';

/** A tokenizer whose tokens are bytes; 0 is special and ends a text. */
export const byteTokenizer: Tokenizer = {
  vocabSize: 256,
  encode: (text) => Promise.resolve([...Buffer.from(text)]),
  decode: (tokenIds) => Buffer.from(tokenIds).toString(),
  createStream: (options) => {
    const decoder = new TextDecoder();
    return {
      push: (tokenId) =>
        options?.skipSpecialTokens === true && tokenId === 0 ? '' : decoder.decode(Uint8Array.of(tokenId), { stream: true }),
      finish: () => decoder.decode(),
    };
  },
  idToToken: (tokenId) => `<${String(tokenId)}>`,
  tokenToId: (token) => Number(token.slice(1, -1)),
  isSpecial: (tokenId) => tokenId === 0,
  tokenBytes: (tokenId) => Uint8Array.of(tokenId),
  tokenText: (tokenId) => Buffer.from([tokenId]).toString(),
};

export const lineTemplate: ServedModel['chatTemplate'] = {
  render: (messages, options) => {
    const { addGenerationPrompt = true, kwargs = {} } = options ?? {};
    if (messages.some(({ content }) => content === 'raise')) throw requestError('the chat template refuses these messages');
    const lines = messages.map(({ role, content }) => `${String(role)}:${String(content)}\n`).join('');
    return Promise.resolve(lines + JSON.stringify(kwargs) + (addGenerationPrompt ? 'assistant:' : ''));
  },
};

/** One step of a script: the events that come together, as the engine process would send them. */
export type ScriptStep = readonly EngineEvent[];

/** Plays one script per request, in order of arrival; `hold` keeps a request waiting until it is aborted. */
export class ScriptedEngine implements EngineClient {
  readonly requests: GenerationRequest[] = [];
  readonly aborted: string[] = [];
  script: (request: GenerationRequest) => readonly ScriptStep[] | 'hold' = (request) => answerWith(request, 'ok');
  private readonly wake = new Map<string, () => void>();

  readonly ready = (): Promise<ModelInfo> => Promise.resolve(byteModel);
  readonly stats = (): typeof noStats => ({ ...noStats, numRunning: 3, numWaiting: 2, kvCacheUsage: 0.5, prefixCacheHits: 7 });
  readonly close = (): Promise<void> => Promise.resolve();

  readonly abort = (requestId: string): void => {
    this.aborted.push(requestId);
    this.wake.get(requestId)?.();
  };

  readonly generate = async function* (this: ScriptedEngine, request: GenerationRequest): AsyncGenerator<ScriptStep> {
    this.requests.push(request);
    const steps = this.script(request);
    if (steps === 'hold') {
      await new Promise<void>((resolve) => {
        this.wake.set(request.id, resolve);
      });
      yield [finish(request, 'abort')];
      return;
    }
    for (const step of steps) {
      await new Promise((resolve) => setImmediate(resolve));
      if (this.aborted.includes(request.id)) {
        yield [finish(request, 'abort')];
        return;
      }
      yield step;
    }
  }.bind(this);
}

export function token(requestId: string, tokenId: number, more: Partial<TokenOutput> = {}): EngineEvent {
  const none = { tokenId, logprob: undefined, rank: undefined, topLogprobs: undefined };
  return { type: 'token', requestId, token: { ...none, ...more } };
}

export function finish(request: GenerationRequest, reason: 'stop' | 'length' | 'abort', numTokens = 0, stopTokenId?: number): EngineEvent {
  const usage = { promptTokens: request.promptTokenIds.length, completionTokens: numTokens, cachedTokens: 1 };
  return { type: 'finish', requestId: request.id, reason, stopTokenId, usage };
}

/** One step per byte, then the end token. */
export function answerWith(request: GenerationRequest, text: string): ScriptStep[] {
  const { logprobs } = request.sampling;
  const details = (tokenId: number): Partial<TokenOutput> =>
    logprobs === undefined
      ? {}
      : {
          logprob: -0.5,
          rank: 1,
          topLogprobs: [
            { tokenId, logprob: -0.5 },
            { tokenId: 122, logprob: -1.5 },
          ].slice(0, logprobs),
        };
  const bytes = [...Buffer.from(text)];
  const steps: ScriptStep[] = bytes.map((byte) => [token(request.id, byte, details(byte))]);
  return [...steps, [token(request.id, 0, details(0)), finish(request, 'stop', bytes.length + 1, 0)]];
}

export interface TestServer {
  readonly url: string;
  readonly port: number;
  readonly engine: ScriptedEngine;
  readonly lifecycle: Lifecycle;
  readonly admission: Admission;
  /** Every line of the log, at all levels. */
  readonly logLines: string[];
  readonly close: () => Promise<void>;
}

export interface TestServerOptions extends Partial<HttpSettings> {
  readonly maxNumQueued?: number;
  readonly isLoading?: boolean;
}

export async function startScriptedServer({
  maxNumQueued = 8,
  isLoading = false,
  ...settings
}: TestServerOptions = {}): Promise<TestServer> {
  const engine = new ScriptedEngine();
  const lifecycle = new Lifecycle();
  if (!isLoading) lifecycle.enter('ready');
  const metrics = new ServerMetrics('byte-model', engine.stats);
  metrics.describeModel(byteModel);
  const admission = new Admission(
    () => ({ maxNumSeqs: byteModel.maxNumSeqs, maxNumQueued }),
    () => {
      metrics.countRejected();
    },
  );
  const logLines: string[] = [];
  const served: ServedModel = {
    names: ['byte-model', 'org/alias'],
    root: 'byte-model',
    createdAt: 1,
    info: byteModel,
    tokenizer: byteTokenizer,
    chatTemplate: lineTemplate,
  };
  const app = createApp({
    settings: {
      apiKeys: [],
      corsOrigins: [],
      maxBodyBytes: 128 * 1024,
      bodyTimeoutMs: 5000,
      keepAliveMs: 15_000,
      maxBufferedBytes: 1024 * 1024,
      version: '0.0.0-test',
      ...settings,
    },
    lifecycle,
    admission,
    metrics,
    engine,
    log: pino({ level: 'trace' }, { write: (line: string) => logLines.push(line) }),
    served: () => (isLoading ? undefined : served),
  });
  const server = await listen(app.callback(), {
    host: '127.0.0.1',
    port: 0,
    headersTimeoutMs: 5000,
    requestTimeoutMs: 10_000,
    keepAliveTimeoutMs: 5000,
  });
  const { port } = server.address;
  return { url: `http://127.0.0.1:${String(port)}`, port, engine, lifecycle, admission, logLines, close: () => server.drain(100) };
}

export function post(url: string, body: unknown, headers: Record<string, string> = {}): Promise<Response> {
  const init = { method: 'POST', headers: { 'content-type': 'application/json', ...headers } };
  return fetch(url, { ...init, body: typeof body === 'string' ? body : JSON.stringify(body) });
}

/** The events of a stream as they were sent, `[DONE]` included as a string. */
export function parseEvents(text: string): unknown[] {
  return text
    .split('\n\n')
    .filter((frame) => frame !== '' && !frame.startsWith(':'))
    .map((frame) => {
      if (!frame.startsWith('data: ')) throw new Error(`not an event: ${frame}`);
      const data = frame.slice('data: '.length);
      return data === '[DONE]' ? data : (JSON.parse(data) as unknown);
    });
}

/** Waits for a state that comes by itself; fails after five seconds instead of waiting for ever. */
export async function until(condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 5000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`still waiting for ${condition.toString()}`);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}
