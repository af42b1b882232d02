import 'reflect-metadata';

/**
 * Injection tokens: who plays which role. Explicit symbols, never emitted metadata; `Symbol.for`, so that two copies of this package agree.
 *
 * ```ts
 * @injectable()
 * class B12xBackend { constructor(@inject(LOGGER) private readonly logger: Logger) {} }
 *
 * host.container.register(MOE_BACKEND, { useClass: B12xBackend });
 * ```
 */

/** Several: every {@link MoeBackend} of the plugins. */
export const MOE_BACKEND: unique symbol = Symbol.for('moe.moe-backend') as never;
/** Several: every {@link LinearBackend} of the plugins. */
export const LINEAR_BACKEND: unique symbol = Symbol.for('moe.linear-backend') as never;
/** One {@link Logger}. */
export const LOGGER: unique symbol = Symbol.for('moe.logger') as never;
/** One {@link Clock}. */
export const CLOCK: unique symbol = Symbol.for('moe.clock') as never;

/** The part of pino's interface that the core uses: fields first, then a sentence. */
export interface Logger {
  readonly debug: (fields: Readonly<Record<string, unknown>>, message: string) => void;
  readonly info: (fields: Readonly<Record<string, unknown>>, message: string) => void;
  readonly warn: (fields: Readonly<Record<string, unknown>>, message: string) => void;
  readonly error: (fields: Readonly<Record<string, unknown>>, message: string) => void;
}

export interface Clock {
  /** Milliseconds since some fixed moment; only differences mean something. */
  readonly nowMs: () => number;
}

/** Says nothing. */
export const silentLogger: Logger = { debug: ignore, info: ignore, warn: ignore, error: ignore };

/** The process's monotonic clock. */
export const systemClock: Clock = { nowMs: () => performance.now() };

function ignore(): void {
  // Nothing to do: nobody listens.
}
