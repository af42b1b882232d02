import type { EngineEvent } from '@moe-server/engine';

/** Events of one request between the process border and whoever reads them: one producer, one consumer. */
export class EventQueue {
  private events: EngineEvent[] = [];
  private wake: (() => void) | undefined;

  push(event: EngineEvent): void {
    this.events.push(event);
    this.wake?.();
  }

  /** Everything that has come, at least one event. */
  async take(): Promise<readonly EngineEvent[]> {
    if (this.events.length === 0) {
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
      this.wake = undefined;
    }
    const events = this.events;
    this.events = [];
    return events;
  }
}
