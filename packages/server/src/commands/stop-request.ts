/** SIGINT and SIGTERM: the first asks to stop, the second insists. */
export class StopRequest {
  readonly requested: Promise<'signal' | 'failed'>;
  readonly insisted: Promise<void>;
  private resolveRequested: (reason: 'signal' | 'failed') => void = () => undefined;
  private resolveInsisted: () => void = () => undefined;
  private numSignals = 0;

  constructor() {
    this.requested = new Promise((resolve) => {
      this.resolveRequested = resolve;
    });
    this.insisted = new Promise((resolve) => {
      this.resolveInsisted = resolve;
    });
  }

  /** @param reason - `failed` when the server ends by itself. */
  request(reason: 'signal' | 'failed'): void {
    this.resolveRequested(reason);
  }

  listen(): void {
    process.on('SIGINT', this.onSignal).on('SIGTERM', this.onSignal);
  }

  /** Leaves the signals to the system again. */
  ignore(): void {
    process.off('SIGINT', this.onSignal).off('SIGTERM', this.onSignal);
  }

  private readonly onSignal = (): void => {
    if (this.numSignals++ === 0) this.request('signal');
    else this.resolveInsisted();
  };
}
