import { notReady } from '../openai/errors.js';

export type Phase = 'loading' | 'ready' | 'restarting' | 'draining' | 'failed';

/** What the server as a whole is doing; one owner for a fact that health checks, routes and the command line read. */
export class Lifecycle {
  private current: Phase = 'loading';

  get phase(): Phase {
    return this.current;
  }

  /** Draining and failed are final. */
  enter(phase: Phase): void {
    if (this.current === 'draining' || this.current === 'failed') return;
    this.current = phase;
  }

  /** @throws {MoeError} MOE_CAPACITY_NOT_READY unless requests are served. */
  requireReady(): void {
    switch (this.current) {
      case 'ready':
        return;
      case 'loading':
        throw notReady('The model is still loading.', 2);
      case 'restarting':
        throw notReady('The engine died and is being restarted.', 2);
      case 'draining':
        throw notReady('The server is shutting down.', 5);
      case 'failed':
        throw notReady('The engine died and could not be restarted.', 30);
    }
  }
}
