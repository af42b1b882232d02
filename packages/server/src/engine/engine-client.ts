import type { EngineEvent, EngineStats, GenerationRequest } from '@moe-server/engine';
import type { ModelInfo } from './engine-protocol.js';

/** The HTTP side's view of the engine. The real one talks to a child process; tests script one. */
export interface EngineClient {
  /** Resolves when the model is loaded for the first time. */
  readonly ready: () => Promise<ModelInfo>;
  /**
   * Runs one request. Yields what has come since the last time, in order; a token and the end it causes come together. The last
   * event is `finish` or `error`. Leaving the loop early aborts the request.
   *
   * @throws {MoeError} MOE_CAPACITY_NOT_READY when there is no engine at the moment.
   */
  readonly generate: (request: GenerationRequest) => AsyncIterable<readonly EngineEvent[]>;
  /** Ends a request early, also one that waits; it still gets its `finish` event, with reason `abort`. Unknown ids are ignored. */
  readonly abort: (requestId: string) => void;
  /** The newest snapshot; zeros before the first. */
  readonly stats: () => EngineStats;
  /** Aborts what runs and ends the engine. */
  readonly close: () => Promise<void>;
}
