import { createServer } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { MoeError } from '@moe-server/core';

export interface HttpServerOptions {
  readonly host: string;
  /** 0 = any free one. */
  readonly port: number;
  readonly headersTimeoutMs: number;
  /** Headers and body together. */
  readonly requestTimeoutMs: number;
  /** Idle connections stay open that long: longer than load balancers keep theirs, so that they close first. */
  readonly keepAliveTimeoutMs: number;
}

/** A listening server and the way to stop it. */
export interface ListeningServer {
  readonly address: AddressInfo;
  /** Takes no new connection; resolves when every answer in progress has gone out, or after `timeoutMs`, when the rest is cut. */
  readonly drain: (timeoutMs: number) => Promise<void>;
}

/** As Koa's `callback()` makes it; handles its own errors. */
export type RequestHandler = (request: IncomingMessage, response: ServerResponse) => Promise<void>;

/**
 * Binds the address and serves `listener` on it.
 *
 * @throws {MoeError} MOE_USAGE when the address cannot be bound, saying why.
 */
export async function listen(listener: RequestHandler, options: HttpServerOptions): Promise<ListeningServer> {
  const server = createServer(
    {
      headersTimeout: options.headersTimeoutMs,
      requestTimeout: options.requestTimeoutMs,
      keepAliveTimeout: options.keepAliveTimeoutMs,
      connectionsCheckingInterval: 1000,
    },
    (request, response) => {
      void listener(request, response);
    },
  );
  server.on('clientError', answerClientError);
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      reject(bindError(cause, options));
    });
    server.listen(options.port, options.host, () => {
      resolve();
    });
  });
  return { address: server.address() as AddressInfo, drain: (timeoutMs) => drain(server, timeoutMs) };
}

async function drain(server: Server, timeoutMs: number): Promise<void> {
  const closed = new Promise<void>((resolve) => {
    server.close(() => {
      resolve();
    });
  });
  // Connections between two requests would keep the server open until they time out.
  const sweep = setInterval(() => {
    server.closeIdleConnections();
  }, 100);
  const deadline = setTimeout(() => {
    server.closeAllConnections();
  }, timeoutMs);
  server.closeIdleConnections();
  await closed;
  clearInterval(sweep);
  clearTimeout(deadline);
}

function bindError(cause: NodeJS.ErrnoException, { host, port }: HttpServerOptions): MoeError {
  const address = `${host}:${String(port)}`;
  const reasons: Record<string, string> = {
    EADDRINUSE: 'another program listens there; stop it or choose another --port',
    EACCES: 'this user may not bind it; choose a --port above 1023',
    EADDRNOTAVAIL: 'this machine has no such address; choose another --host',
    ENOTFOUND: 'the name does not resolve; choose another --host',
  };
  const reason = reasons[cause.code ?? ''] ?? cause.message;
  return new MoeError('MOE_USAGE', `cannot listen on ${address}: ${reason}`, { address, errno: cause.code }, { cause });
}

/** Requests that never became one: broken framing, headers that are too large or too slow. Same envelope as everywhere. */
function answerClientError(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  const [status, message] = clientErrors[error.code ?? ''] ?? ['400 Bad Request', 'The request is not valid HTTP.'];
  const body = JSON.stringify({ error: { message, type: 'invalid_request_error', param: null, code: null } });
  socket.end(
    `HTTP/1.1 ${status}\r\nContent-Type: application/json; charset=utf-8\r\n` +
      `Content-Length: ${String(Buffer.byteLength(body))}\r\nConnection: close\r\n\r\n${body}`,
  );
}

const clientErrors: Readonly<Record<string, readonly [status: string, message: string]>> = {
  HPE_HEADER_OVERFLOW: ['431 Request Header Fields Too Large', 'The headers are larger than 16 KiB.'],
  ERR_HTTP_REQUEST_TIMEOUT: ['408 Request Timeout', 'The request did not arrive in time.'],
};
