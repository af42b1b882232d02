import { Engine } from '../src/engine.js';
import type { EngineOptions } from '../src/engine-config.js';
import type { EngineEvent, GenerationRequest, SamplingParams } from '../src/request.js';
import type { FakeRunnerOptions } from './fake-runner.js';
import { FakeRunner, prompt, sampling } from './fake-runner.js';

export const blockSize = 4;
export const eos = 999;

/** An engine over a {@link FakeRunner}, and all that it has emitted. */
export interface Bench {
  readonly engine: Engine;
  readonly runner: FakeRunner;
  readonly events: EngineEvent[];
}

export function bench(options: Partial<EngineOptions> = {}, runnerOptions: FakeRunnerOptions = {}): Bench {
  const runner = new FakeRunner({ blockSize, ...runnerOptions });
  const engine = new Engine({
    runner,
    numBlocks: 64,
    blockSize,
    maxModelLen: 200,
    eosTokenIds: [eos, 998],
    randomSeed: () => 11n,
    ...options,
  });
  const events: EngineEvent[] = [];
  engine.onEvent((event) => events.push(event));
  return { engine, runner, events };
}

export function request(id: string, length: number, changes: Partial<SamplingParams> = {}, seed = 1): GenerationRequest {
  return { id, promptTokenIds: prompt(length, seed), sampling: sampling(changes) };
}

/** Adds requests and waits until all have ended. */
export async function run({ engine, events }: Bench, ...requests: readonly GenerationRequest[]): Promise<EngineEvent[]> {
  for (const each of requests) engine.addRequest(each);
  await engine.drain();
  return events;
}

/** Everything a caller sees of one request but the usage, which tells of the cache. */
export function seen(events: readonly EngineEvent[], id: string): unknown[] {
  return events
    .filter(({ requestId }) => requestId === id)
    .map((event) => (event.type === 'finish' ? [event.reason, event.stopTokenId] : event.type === 'token' ? event.token : event));
}

export function tokenIds(events: readonly EngineEvent[], id: string): number[] {
  return events.flatMap((event) => (event.type === 'token' && event.requestId === id ? [event.token.tokenId] : []));
}

/** The reason or the code of the error with which a request ended. */
export function ending(events: readonly EngineEvent[], id: string): string {
  const last = events.filter(({ requestId }) => requestId === id).at(-1);
  return last?.type === 'finish' ? last.reason : last?.type === 'error' ? last.error.code : 'none';
}
