import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { MoeError } from '@moe-server/core';
import type { EngineEvent, EngineStats, GenerationRequest } from '@moe-server/engine';
import type { EngineSettings } from '../composition/engine-settings.js';
import { notReady } from '../openai/errors.js';
import type { EngineClient } from './engine-client.js';
import { noStats } from './engine-protocol.js';
import type { EngineCommand, EngineMessage, ModelInfo } from './engine-protocol.js';
import { EventQueue } from './event-queue.js';

export interface ForkedEngineOptions {
  readonly settings: EngineSettings;
  /** Of the engine process's own log, on standard error. Default warn. */
  readonly logLevel?: string;
  readonly observer?: EngineProcessObserver;
  /** Another entry file, for tests. */
  readonly entry?: URL;
  /** Wait before the n-th restart in a row; when all are used up the engine is given up. */
  readonly restartDelaysMs?: readonly number[];
  /** A process that lived so long had no part in the deaths before it. */
  readonly healthyAfterMs?: number;
  /** A loaded engine that is silent, or that has work and finishes no step, for so long is killed. */
  readonly silenceMs?: number;
  readonly stepMs?: number;
}

/** Whom to tell what the process does; every member may be left out. */
export interface EngineProcessObserver {
  /** Everything from a process that loads: plugins, plan, progress, ready. Also after a restart. */
  readonly onMessage?: (message: EngineMessage) => void;
  /** The engine died after it was ready. `restartInMs` is undefined when it is given up. */
  readonly onDeath?: (error: MoeError, restartInMs: number | undefined) => void;
}

/**
 * Threads of libuv's pool in the engine's process, where weights are read and packed while a model loads: one for each processor and two that wait for
 * the disk, within bounds. They sleep afterwards.
 */
function ioThreads(): number {
  return Math.min(Math.max(availableParallelism() + 2, 4), 16);
}

const closeMs = 5000;
const watchMs = 1000;

/**
 * The engine in a child process, watched. When it dies, every request gets an error event at once, and a new process is started after a
 * growing delay; a process that stops talking is killed and counts as dead.
 */
export class ForkedEngine implements EngineClient {
  private child: ChildProcess | undefined;
  /** Set while requests can be sent. */
  private model: ModelInfo | undefined;
  private snapshot: EngineStats = noStats;
  private readonly queues = new Map<string, EventQueue>();
  private readonly firstReady: Promise<ModelInfo>;
  private settleReady: { readonly resolve: (model: ModelInfo) => void; readonly reject: (error: Error) => void } | undefined;
  private failure: MoeError | undefined;
  private numDeaths = 0;
  private startedAt = 0;
  private heardAt = 0;
  private steppedAt = 0;
  private isClosing = false;
  private hasGivenUp = false;
  private restartTimer: NodeJS.Timeout | undefined;
  private readonly watchTimer: NodeJS.Timeout;
  private readonly restartDelaysMs: readonly number[];
  /** What a process was killed for, where that was us. */
  private killedBecause: string | undefined;

  constructor(private readonly options: ForkedEngineOptions) {
    this.restartDelaysMs = options.restartDelaysMs ?? [500, 1000, 2000, 5000, 10_000];
    this.firstReady = new Promise<ModelInfo>((resolve, reject) => {
      this.settleReady = { resolve, reject };
    });
    // Whoever asks is told; whoever does not must not crash for it.
    this.firstReady.catch(() => undefined);
    this.watchTimer = setInterval(() => {
      this.watch();
    }, watchMs);
    this.watchTimer.unref();
    this.spawn();
  }

  readonly ready = (): Promise<ModelInfo> => this.firstReady;

  readonly stats = (): EngineStats => this.snapshot;

  /** Of the engine's process, while there is one. */
  get pid(): number | undefined {
    return this.child?.pid;
  }

  readonly abort = (requestId: string): void => {
    if (this.queues.has(requestId)) this.send({ type: 'abort', requestId });
  };

  readonly generate = (request: GenerationRequest): AsyncIterable<readonly EngineEvent[]> => this.run(request);

  readonly close = async (): Promise<void> => {
    this.isClosing = true;
    clearTimeout(this.restartTimer);
    clearInterval(this.watchTimer);
    const { child } = this;
    if (child?.exitCode !== null || child.signalCode !== null) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => child.kill('SIGKILL'), closeMs);
      child.once('exit', () => {
        clearTimeout(timer);
        resolve();
      });
      this.send({ type: 'close' });
    });
  };

  private async *run(request: GenerationRequest): AsyncGenerator<readonly EngineEvent[], void, undefined> {
    if (this.model === undefined) throw this.notReady();
    const queue = new EventQueue();
    this.queues.set(request.id, queue);
    this.send({ type: 'generate', request });
    let hasEnded = false;
    try {
      while (!hasEnded) {
        const events = await queue.take();
        const last = events.at(-1);
        hasEnded = last?.type === 'finish' || last?.type === 'error';
        yield events;
      }
    } finally {
      this.queues.delete(request.id);
      if (!hasEnded) this.send({ type: 'abort', requestId: request.id });
    }
  }

  private notReady(): MoeError {
    if (this.hasGivenUp) return notReady('The engine died and could not be restarted.', 30);
    return notReady(this.isClosing ? 'The server is shutting down.' : 'The engine died and is being restarted.', 2);
  }

  private spawn(): void {
    const child = fork(this.options.entry ?? new URL('./engine-process.js', import.meta.url), [], {
      serialization: 'advanced',
      // What native code prints belongs to the log; standard output is for what the user asked for.
      stdio: ['ignore', process.stderr, process.stderr, 'ipc'],
      execArgv: process.execArgv.filter((arg) => !arg.startsWith('--inspect')),
      // Plugins run there, and they have no use for the keys of the HTTP side.
      env: { UV_THREADPOOL_SIZE: String(ioThreads()), ...process.env, MOE_API_KEY: undefined },
    });
    this.child = child;
    this.failure = undefined;
    this.killedBecause = undefined;
    this.startedAt = performance.now();
    child.on('message', (message: EngineMessage) => {
      this.receive(message);
    });
    child.on('error', () => undefined);
    child.once('exit', (code, signal) => {
      this.exited(code, signal);
    });
    this.send({ type: 'start', settings: this.options.settings, logLevel: this.options.logLevel ?? 'warn' });
  }

  private receive(message: EngineMessage): void {
    this.heardAt = performance.now();
    switch (message.type) {
      case 'events':
        for (const event of message.events) this.queues.get(event.requestId)?.push(event);
        return;
      case 'heartbeat':
        if (message.stats.numSteps !== this.snapshot.numSteps || message.stats.numRunning === 0) this.steppedAt = this.heardAt;
        this.snapshot = message.stats;
        break;
      case 'failed':
        this.failure = MoeError.fromJSON(message.error);
        break;
      case 'ready':
        this.model = message.model;
        this.steppedAt = this.heardAt;
        this.settleReady?.resolve(message.model);
        this.settleReady = undefined;
        break;
    }
    this.options.observer?.onMessage?.(message);
  }

  private exited(code: number | null, signal: NodeJS.Signals | null): void {
    const livedMs = performance.now() - this.startedAt;
    this.model = undefined;
    this.child = undefined;
    this.snapshot = noStats;
    const how = this.killedBecause ?? signal ?? `exit code ${String(code)}`;
    const error = this.failure ?? new MoeError('MOE_DEVICE_LOST', `The engine process died (${how}).`, { code, signal });
    for (const [requestId, queue] of this.queues) queue.push({ type: 'error', requestId, error: lost(how).toJSON() });
    if (this.settleReady !== undefined) {
      // It never served: the model or a plugin is at fault, and trying again would end the same way.
      this.settleReady.reject(error);
      this.settleReady = undefined;
      clearInterval(this.watchTimer);
      return;
    }
    if (this.isClosing) return;
    if (livedMs > (this.options.healthyAfterMs ?? 60_000)) this.numDeaths = 0;
    const delay = this.restartDelaysMs[this.numDeaths++];
    this.hasGivenUp = delay === undefined;
    this.options.observer?.onDeath?.(error, delay);
    if (delay === undefined) return;
    this.restartTimer = setTimeout(() => {
      this.spawn();
    }, delay);
  }

  /** Kills a process that hangs: silent, or with work and no step finished. */
  private watch(): void {
    if (this.model === undefined || this.child === undefined) return;
    const now = performance.now();
    const { silenceMs = 60_000, stepMs = 600_000 } = this.options;
    const seconds = (since: number): string => String(Math.round((now - since) / 1000));
    if (now - this.heardAt > silenceMs) this.kill(`it was silent for ${seconds(this.heardAt)} s and was killed`);
    else if (now - this.steppedAt > stepMs) this.kill(`it finished no step for ${seconds(this.steppedAt)} s and was killed`);
  }

  private kill(because: string): void {
    this.killedBecause = because;
    this.child?.kill('SIGKILL');
  }

  private send(command: EngineCommand): void {
    // A channel that breaks is followed by the exit of the process, which is handled.
    if (this.child?.connected === true) this.child.send(command, () => undefined);
  }
}

function lost(how: string): MoeError {
  const message = `The engine process died while this request ran (${how}). It is restarted; send the request again.`;
  return new MoeError('MOE_DEVICE_LOST', message, { headers: { 'retry-after': '2' } });
}
