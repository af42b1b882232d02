import type { MoeError } from '@moe-server/core';
import type { EngineEvent, GenerationRequest } from '@moe-server/engine';
import { expect } from 'chai';
import { ForkedEngine } from '../../src/engine/forked-engine.js';
import type { ForkedEngineOptions } from '../../src/engine/forked-engine.js';
import { until } from '../scripted-server.js';

const entry = new URL('./fake-engine-process.js', import.meta.url);
const sampling = {} as GenerationRequest['sampling'];

/** Lets the process come back before the next try. */
async function pause(): Promise<EngineEvent[]> {
  await new Promise((resolve) => setTimeout(resolve, 1));
  return [];
}

describe('ForkedEngine', function () {
  this.timeout(20_000);
  let engine: ForkedEngine;
  const deaths: [message: string, restartInMs: number | undefined][] = [];
  const fork = (options: Partial<ForkedEngineOptions> = {}): ForkedEngine => {
    deaths.length = 0;
    engine = new ForkedEngine({
      settings: { model: 'any' },
      entry,
      restartDelaysMs: [1, 1],
      observer: { onDeath: (error, delay) => deaths.push([error.message, delay]) },
      ...options,
    });
    return engine;
  };
  afterEach(() => engine.close());

  let numRequests = 0;
  const collect = async (firstToken: number): Promise<EngineEvent[]> => {
    const events: EngineEvent[] = [];
    const request = { id: `r${String(numRequests++)}`, promptTokenIds: [firstToken], sampling };
    for await (const batch of engine.generate(request)) events.push(...batch);
    return events;
  };

  it('passes events on in order and ends after the last', async () => {
    await fork().ready();
    expect((await collect(1)).map(({ type }) => type)).to.deep.equal(['token', 'token', 'finish']);
  });

  it('keeps the keys of the HTTP side from the process', async () => {
    process.env.MOE_API_KEY = 'secret';
    try {
      await fork().ready();
    } finally {
      delete process.env.MOE_API_KEY;
    }
    expect(deaths).to.deep.equal([]);
  });

  it('aborts a request that waits', async () => {
    await fork().ready();
    const id = `r${String(numRequests)}`;
    const events = collect(3);
    engine.abort(id);
    expect(await events).to.have.nested.property('[0].reason', 'abort');
  });

  it('gives every request an error event when the process dies, then starts another one', async () => {
    await fork().ready();
    const { pid } = engine;
    const [held, killed] = await Promise.all([collect(3), collect(2)]);
    for (const [event] of [held, killed]) {
      expect(event).to.have.nested.property('error.code', 'MOE_DEVICE_LOST');
      expect(event).to.have.nested.property('error.message').that.contains('SIGKILL');
    }
    expect(deaths).to.deep.equal([['The engine process died (SIGKILL).', 1]]);
    await until(() => engine.pid !== undefined && engine.pid !== pid);
    let events: EngineEvent[] = [];
    while (events.length === 0) events = await collect(1).catch(pause);
    expect(events).to.have.length(3);
  });

  it('refuses requests while there is no process, with a time to come back', async () => {
    await fork({ restartDelaysMs: [60_000] }).ready();
    await collect(2);
    const error = (await collect(1).catch((thrown: unknown) => thrown)) as MoeError;
    expect(error.code).to.equal('MOE_CAPACITY_NOT_READY');
    expect(error.details).to.have.nested.property('headers.retry-after');
  });

  it('gives up when the process dies again and again', async () => {
    await fork().ready();
    while (deaths.at(-1)?.[1] !== undefined || deaths.length === 0) {
      await collect(2).catch(pause);
    }
    expect(deaths.map(([, delay]) => delay)).to.deep.equal([1, 1, undefined]);
  });

  it('kills a process that falls silent', async () => {
    await fork({ silenceMs: 200 }).ready();
    const [event] = await collect(4);
    expect(event)
      .to.have.nested.property('error.message')
      .that.matches(/silent for \d+ s and was killed/);
  });

  it('rejects with what the process says when the model cannot be loaded, and does not try again', async () => {
    const error = await fork({ settings: { model: 'bad' } })
      .ready()
      .catch((thrown: unknown) => thrown);
    expect(error).to.have.property('code', 'MOE_CHECKPOINT_NOT_FOUND');
    expect(deaths).to.deep.equal([]);
  });

  it('names the signal when the process crashes while it loads', async () => {
    const error = (await fork({ settings: { model: 'crash' } })
      .ready()
      .catch((thrown: unknown) => thrown)) as MoeError;
    expect(error.code).to.equal('MOE_DEVICE_LOST');
    expect(error.message).to.contain('SIGSEGV');
  });
});
