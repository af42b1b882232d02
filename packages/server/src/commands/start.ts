import { readFileSync } from 'node:fs';
import { basename, resolve } from 'node:path';
import { messageOf, MoeError } from '@moe-server/core';
import pino from 'pino';
import type { EngineSettings } from '../composition/engine-settings.js';
import { cacheDirectory } from '../config/cache-directory.js';
import type { ServerConfig } from '../config/server-config.js';
import type { EngineMessage } from '../engine/engine-protocol.js';
import { ForkedEngine } from '../engine/forked-engine.js';
import { exitStatus } from '../exit-status.js';
import { Admission } from '../http/admission.js';
import type { ListeningServer } from '../http/http-server.js';
import { Lifecycle } from '../http/lifecycle.js';
import type { ServerMetrics } from '../http/metrics.js';
import type { ServedText } from '../http/served-text.js';
import { bundledModel, version } from '../package-info.js';
import type { HttpSettings, ServedModel } from '../routes/endpoint.js';
import { logStream } from '../terminal/log-stream.js';
import { StartReport } from '../terminal/start-report.js';
import { paint } from '../terminal/terminal.js';
import type { Terminal } from '../terminal/terminal.js';
import { StopRequest } from './stop-request.js';

/** Bytes that a client may leave unread before it loses its stream. */
const maxBufferedBytes = 4 * 2 ** 20;
/** Last chance for answers that were aborted to say so. */
const lastWordsMs = 1000;

/**
 * `moe-server start`: binds the address, loads the model in the engine's process, serves until a signal comes.
 *
 * @returns the exit status.
 * @throws {MoeError} whatever keeps it from serving.
 */
export async function start(config: ServerConfig, terminal: Terminal): Promise<number> {
  const directory = resolve(config.model ?? bundledModel());
  requireOneRank(config);
  const names = servedNames(config, directory);
  const settings = httpSettings(config);
  const report = new StartReport(terminal.out, directory);
  const log = pino({ level: config.logLevel, base: null }, logStream(terminal.err));
  const lifecycle = new Lifecycle();
  const stop = new StopRequest();
  let served: ServedModel | undefined;
  let metrics: ServerMetrics | undefined;

  report.begin(version);
  const text = new Deferred<ServedText>();
  let server: ListeningServer | undefined;
  const engine: ForkedEngine = new ForkedEngine({
    settings: engineSettings(config, directory),
    logLevel: config.logLevel === 'info' ? 'warn' : config.logLevel,
    // Plain functions keep the engine's thread busy for as long as a step takes.
    ...(config.device === 'reference' || config.simulate !== undefined ? { silenceMs: Number.POSITIVE_INFINITY } : {}),
    observer: {
      onMessage: (message: EngineMessage) => {
        if (message.type === 'heartbeat') metrics?.observeEngine(message.metrics);
        // A restart repeats what the terminal has shown.
        if (lifecycle.phase === 'loading') report.take(message);
        if (message.type === 'plan') text.settle(() => openServedText(directory, message.vocabSize));
        if (message.type === 'ready' && lifecycle.phase === 'restarting') {
          lifecycle.enter('ready');
          log.warn('the engine serves again');
        }
      },
      onDeath: (error, restartInMs) => {
        metrics?.countEngineDeath();
        lifecycle.enter(restartInMs === undefined ? 'failed' : 'restarting');
        const next = restartInMs === undefined ? 'It died too often and is given up.' : `It starts again in ${String(restartInMs)} ms.`;
        log.error(`${error.message} ${next}`);
        if (restartInMs === undefined) stop.request('failed');
      },
    },
  });

  stop.listen();
  try {
    // Only now: while this process loads the modules of its HTTP side, the engine's loads its own and then the model.
    const [{ ServerMetrics: Metrics }, { createApp }, { listen }] = await Promise.all([
      import('../http/metrics.js'),
      import('../http/app.js'),
      import('../http/http-server.js'),
    ]);
    const counted = new Metrics(names[0], () => engine.stats());
    metrics = counted;
    const admission = new Admission(
      () => ({ maxNumSeqs: config.maxNumSeqs, maxNumQueued: config.maxNumQueuedReqs }),
      () => {
        counted.countRejected();
      },
    );
    const app = createApp({ settings, lifecycle, admission, metrics: counted, engine, log, served: () => served });
    server = await listen(app.callback(), {
      host: config.host,
      port: config.port,
      headersTimeoutMs: 15_000,
      requestTimeoutMs: 60_000,
      keepAliveTimeoutMs: 75_000,
    });
    const loaded = Promise.all([engine.ready(), text.promise]);
    const first = await Promise.race([loaded, stop.requested]);
    if (first instanceof Array) {
      const [info, { tokenizer, chatTemplate }] = first;
      served = { names, root: names[0], createdAt: Math.floor(Date.now() / 1000), info, tokenizer, chatTemplate };
      counted.describeModel(info);
      lifecycle.enter('ready');
      report.ready(info, urlOf(config.host, server.address.port), names[0], warningsFor(config));
      await stop.requested;
    }
    report.stopProgress();
    if (lifecycle.phase !== 'failed') {
      lifecycle.enter('draining');
      if (admission.numAdmitted > 0) report.note(paint(terminal.out, 'dim', 'finishing running requests; Ctrl-C again ends them'));
      await Promise.race([admission.whenEmpty(), delay(config.drainTimeout * 1000), stop.insisted]);
    }
    await engine.close();
    await server.drain(lastWordsMs);
    return lifecycle.phase === 'failed' ? exitStatus.engineDied : exitStatus.ok;
  } catch (thrown) {
    report.stopProgress();
    lifecycle.enter('failed');
    await Promise.all([engine.close(), server?.drain(0)]);
    throw thrown;
  } finally {
    stop.ignore();
    await text
      .settled()
      ?.then(({ chatTemplate }) => chatTemplate.close())
      .catch(() => undefined);
  }
}

/** Its modules are loaded when the plan is there, which is while the engine reads weights. */
async function openServedText(directory: string, vocabSize: number): Promise<ServedText> {
  const { openText } = await import('../http/served-text.js');
  return openText(directory, vocabSize);
}

/** Those settings come from the environment or a file here: the command has no such flags. */
function requireOneRank({ tensorParallelSize, sources }: ServerConfig): void {
  if (tensorParallelSize === 1) return;
  const message = `${sources.tensorParallelSize.text}: models are served by one device yet; \`moe-server plan\` alone takes ${String(tensorParallelSize)}.`;
  throw new MoeError('MOE_USAGE', message, { tensorParallelSize });
}

function engineSettings(config: ServerConfig, directory: string): EngineSettings {
  const { maxModelLen, maxNumSeqs, maxNumBatchedTokens, kvCacheDtype, kvCacheMemoryBytes, enablePrefixCaching } = config;
  const { verifyKernels, packedWeightsCache, calibration, cacheDir = cacheDirectory(process.env) } = config;
  const { device, threads, simulate, plugin, plugins, preferences, numericsPolicy, batchInvariant, seed, generationConfig } = config;
  return {
    model: directory,
    directory: process.cwd(),
    ...{ maxModelLen, maxNumSeqs, maxNumBatchedTokens, kvCacheDtype, kvCacheMemoryBytes, enablePrefixCaching },
    ...{ verifyKernels, packedWeightsCache, calibration, cacheDir },
    ...{ device, threads, simulate, plugin, plugins, preferences, numericsPolicy, batchInvariant, seed, generationConfig },
    plan: config.plan === undefined ? undefined : resolve(config.plan),
  };
}

function httpSettings(config: ServerConfig): HttpSettings {
  return {
    apiKeys: [...config.apiKey, ...(config.apiKeyFile === undefined ? [] : readKeyFile(config.apiKeyFile))],
    corsOrigins: config.corsOrigin,
    maxBodyBytes: config.maxBody,
    bodyTimeoutMs: 60_000,
    keepAliveMs: 15_000,
    maxBufferedBytes,
    version,
  };
}

function readKeyFile(file: string): string[] {
  let content: string;
  try {
    content = readFileSync(file, 'utf8');
  } catch (cause) {
    throw new MoeError('MOE_USAGE', `--api-key-file: ${messageOf(cause)}`, { file }, { cause });
  }
  const keys = content
    .split('\n')
    .map((line) => line.replace(/#.*/, '').trim())
    .filter((line) => line !== '');
  if (keys.length === 0) throw new MoeError('MOE_USAGE', `--api-key-file: ${file} has no key`, { file });
  return keys;
}

function servedNames({ servedModelName }: ServerConfig, directory: string): [string, ...string[]] {
  const [first, ...others] = servedModelName;
  return first === undefined ? [basename(directory)] : [first, ...others];
}

function warningsFor({ host, apiKey, apiKeyFile }: ServerConfig): string[] {
  const isLocal = host === 'localhost' || host === '::1' || host.startsWith('127.');
  if (isLocal || apiKey.length > 0 || apiKeyFile !== undefined) return [];
  return [`everybody who can reach ${host} may use it: there is no --api-key`];
}

/** A wildcard address is no place to connect to. */
function urlOf(host: string, port: number): string {
  const name = host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host.includes(':') ? `[${host}]` : host;
  return `http://${name}:${String(port)}`;
}

function delay(milliseconds: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, milliseconds).unref();
  });
}

/** A promise that somebody else fills, once. */
class Deferred<T> {
  readonly promise: Promise<T>;
  private resolve: ((value: Promise<T>) => void) | undefined;
  private made: Promise<T> | undefined;

  constructor() {
    this.promise = new Promise<T>((resolve) => {
      this.resolve = resolve;
    });
    this.promise.catch(() => undefined);
  }

  settle(make: () => Promise<T>): void {
    this.made ??= make();
    this.resolve?.(this.made);
  }

  /** What it was filled with, undefined when it never was. */
  settled(): Promise<T> | undefined {
    return this.made;
  }
}
