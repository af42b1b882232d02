import { isMoeError, messageOf, MoeError } from '@moe-server/core';
import type { EngineEvent } from '@moe-server/engine';
import pino from 'pino';
import { createEngine } from '../composition/compose.js';
import type { ComposedEngine } from '../composition/compose.js';
import type { EngineSettings } from '../composition/engine-settings.js';
import type { EngineCommand, EngineMessage } from './engine-protocol.js';

/**
 * Entry of the engine's process: the only caller of the composition root while serving. Kernels run here, so that one that crashes takes
 * neither the HTTP side nor its connections with it. Speaks engine-protocol.ts over the IPC channel and ends with it.
 */

const heartbeatMs = 250;
/** Between two progress messages. */
const progressMs = 50;

const loading = new AbortController();
let composed: ComposedEngine | undefined;
let pendingEvents: EngineEvent[] = [];

function send(message: EngineMessage): void {
  // A parent that is gone is noticed by 'disconnect'; there is nobody left to tell.
  process.send?.(message, undefined, undefined, () => undefined);
}

/** Events of one step arrive one by one in one turn; they leave together. */
function queueEvent(event: EngineEvent): void {
  if (pendingEvents.length === 0) queueMicrotask(flushEvents);
  pendingEvents.push(event);
}

function flushEvents(): void {
  const events = pendingEvents;
  pendingEvents = [];
  if (events.length > 0) send({ type: 'events', events });
}

async function start(settings: EngineSettings, logLevel: string): Promise<void> {
  let lastProgress = 0;
  composed = await createEngine(settings, {
    log: pino({ level: logLevel, base: { process: 'engine' } }, pino.destination(2)),
    signal: loading.signal,
    onPlugins: ({ plugins }, problems) => {
      send({ type: 'plugins', plugins, problems });
    },
    onPlan: (plan, { quantization }, { architecture, vocabSize }) => {
      send({ type: 'plan', plan, architecture, quantization, vocabSize });
    },
    onRefused: (sentence) => {
      lastProgress = 0;
      send({ type: 'refused', sentence });
    },
    onProgress: ({ bytesDone, bytesTotal }) => {
      const now = performance.now();
      if (bytesDone < bytesTotal && now - lastProgress < progressMs) return;
      lastProgress = now;
      send({ type: 'progress', bytesDone, bytesTotal });
    },
  });
  const { engine, info } = composed;
  engine.onEvent(queueEvent);
  engine.start();
  setInterval(() => {
    send({ type: 'heartbeat', stats: engine.stats(), metrics: engine.takeMetrics() });
  }, heartbeatMs);
  send({ type: 'ready', model: info });
}

async function handle(command: EngineCommand): Promise<void> {
  switch (command.type) {
    case 'start':
      await start(command.settings, command.logLevel);
      return;
    case 'generate':
      try {
        if (composed === undefined) throw new MoeError('MOE_CAPACITY_NOT_READY', 'the model is not loaded');
        composed.engine.addRequest(command.request);
      } catch (thrown) {
        const error = asMoeError(thrown).toJSON();
        queueEvent({ type: 'error', requestId: command.request.id, error });
      }
      return;
    case 'abort':
      composed?.engine.abort(command.requestId);
      return;
    case 'close':
      loading.abort();
      await composed?.engine.stop();
      flushEvents();
      exitAfterSending(0);
  }
}

function fail(thrown: unknown): void {
  if (loading.signal.aborted) {
    exitAfterSending(0);
    return;
  }
  process.send?.({ type: 'failed', error: asMoeError(thrown).toJSON() } satisfies EngineMessage, undefined, undefined, () => {
    process.exit(1);
  });
}

function exitAfterSending(status: number): void {
  // Messages before are written in order; the callback of the last one means all have left.
  process.send?.({ type: 'events', events: [] } satisfies EngineMessage, undefined, undefined, () => {
    process.exit(status);
  });
}

function asMoeError(thrown: unknown): MoeError {
  if (isMoeError(thrown)) return thrown;
  return new MoeError('MOE_INTERNAL', messageOf(thrown), { stack: thrown instanceof Error ? thrown.stack : undefined });
}

// Ctrl-C reaches the whole group; when to end is the HTTP process's to say.
process.on('SIGINT', () => undefined);
process.on('SIGTERM', () => undefined);
process.on('disconnect', () => {
  process.exit(1);
});
process.on('message', (command: EngineCommand) => {
  handle(command).catch(fail);
});
