import type { ServerResponse } from 'node:http';
import { toHttpFailure } from './errors.js';

export interface EventStreamOptions {
  /** A comment is sent after that much silence, so that proxies keep the connection. */
  readonly keepAliveMs: number;
  /** Unsent bytes after which a client that does not read loses its stream. */
  readonly maxBufferedBytes: number;
}

/**
 * Server-sent events the way the OpenAI API frames them: one `data: {json}` per event, comments for keep-alive, `data: [DONE]` at
 * the end. The headers go out with the first event, so that whatever fails before is still an ordinary HTTP error.
 */
export class EventStream {
  private keepAlive: NodeJS.Timeout | undefined;
  private hasEnded = false;

  /**
   * @param response - nothing may have been written to it; headers set before are kept.
   */
  constructor(
    private readonly response: ServerResponse,
    private readonly options: EventStreamOptions,
  ) {
    this.keepAlive = setInterval(() => {
      this.write(': keep-alive\n\n');
    }, options.keepAliveMs);
    response.once('close', () => {
      this.stopKeepAlive();
    });
  }

  /** Whether bytes have gone out: from then on an error is an event, no longer a status. */
  get isOpen(): boolean {
    return this.response.headersSent;
  }

  /** One write per event: clients that count chunks as tokens depend on it. */
  send(event: unknown): void {
    this.write(`data: ${JSON.stringify(event)}\n\n`);
    this.keepAlive?.refresh();
  }

  /** The error as an event, then the end. There is never a finish_reason after a failure. */
  fail(thrown: unknown): void {
    this.send(toHttpFailure(thrown).body);
    this.end();
  }

  end(): void {
    this.write('data: [DONE]\n\n');
    this.hasEnded = true;
    this.stopKeepAlive();
    this.response.end();
  }

  /** Stops without a word, for a client that is gone or an error that is answered otherwise. */
  stopKeepAlive(): void {
    clearInterval(this.keepAlive);
    this.keepAlive = undefined;
  }

  private write(text: string): void {
    const { response } = this;
    if (this.hasEnded || response.destroyed) return;
    if (!response.headersSent) {
      response.writeHead(200, {
        'content-type': 'text/event-stream; charset=utf-8',
        'cache-control': 'no-cache',
        'x-accel-buffering': 'no',
      });
    }
    response.write(text);
    // Closing aborts the request behind the stream; see routes/exchange.ts.
    if (response.writableLength > this.options.maxBufferedBytes) response.destroy();
  }
}
