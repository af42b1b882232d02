import type { IncomingMessage } from 'node:http';
import { requestError } from '../openai/errors.js';

export interface BodyLimits {
  readonly maxBytes: number;
  /** From the first wait for the body to its last byte. */
  readonly timeoutMs: number;
}

/** Arrays and objects inside each other. Deeper bodies make recursive code (validation, logging) overflow the stack. */
const maxDepth = 64;

/**
 * Reads a JSON object from a request. Own code instead of a body-parsing middleware, because a limit here must hold before
 * memory is spent, nothing is inflated, and every failure needs the API's error envelope.
 *
 * @throws {MoeError} MOE_REQUEST_INVALID with status 400, 408, 413 or 415.
 */
export async function readJsonBody(request: IncomingMessage, limits: BodyLimits): Promise<Readonly<Record<string, unknown>>> {
  const encoding = request.headers['content-encoding'];
  if (encoding !== undefined && encoding.toLowerCase() !== 'identity') {
    throw requestError(`content-encoding: expected identity, got ${printable(encoding)}; send the body uncompressed`, { status: 415 });
  }
  const type = request.headers['content-type']?.split(';', 1)[0]?.trim().toLowerCase();
  if (type !== 'application/json' && !(type?.startsWith('application/') === true && type.endsWith('+json'))) {
    const got = type === undefined ? 'none' : printable(type);
    throw requestError(`content-type: expected application/json, got ${got}`, { status: 415 });
  }
  const declared = Number(request.headers['content-length'] ?? 0);
  if (declared > limits.maxBytes) throw tooLarge(limits.maxBytes);
  return parseJsonObject(await readBytes(request, limits));
}

/** Decodes and parses; exported for the tests. */
export function parseJsonObject(bytes: Buffer): Readonly<Record<string, unknown>> {
  if (bytes.length === 0) throw requestError('The body is empty; expected a JSON object.');
  checkDepth(bytes);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw requestError('The body is not valid UTF-8.');
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw requestError(`The body is not valid JSON: ${positionOf(cause)}`);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    const got = value === null ? 'null' : Array.isArray(value) ? 'an array' : `a ${typeof value}`;
    throw requestError(`The body must be a JSON object, got ${got}.`);
  }
  return value as Readonly<Record<string, unknown>>;
}

function readBytes(request: IncomingMessage, { maxBytes, timeoutMs }: BodyLimits): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let numBytes = 0;
    const timer = setTimeout(() => {
      const seconds = String(timeoutMs / 1000);
      fail(requestError(`The body did not arrive within ${seconds} s.`, { status: 408, headers: { connection: 'close' } }));
    }, timeoutMs);
    const stop = (): void => {
      clearTimeout(timer);
      request.off('data', onData).off('end', onEnd).off('error', fail).off('close', onClose);
    };
    const fail = (error: Error): void => {
      stop();
      // The rest is dropped as it comes, so that the answer gets through before the connection closes with it.
      request.resume();
      reject(error);
    };
    const onData = (chunk: Buffer): void => {
      numBytes += chunk.length;
      if (numBytes > maxBytes) fail(tooLarge(maxBytes));
      else chunks.push(chunk);
    };
    const onEnd = (): void => {
      stop();
      resolve(Buffer.concat(chunks));
    };
    const onClose = (): void => {
      fail(requestError('The connection closed before the body was complete.', { status: 400 }));
    };
    request.on('data', onData).on('end', onEnd).on('error', fail).on('close', onClose);
  });
}

function tooLarge(maxBytes: number): Error {
  const message = `The body is larger than ${String(maxBytes)} bytes, the limit of this server (--max-body).`;
  return requestError(message, { status: 413, headers: { connection: 'close' } });
}

/** Counts brackets outside strings, in bytes: UTF-8 never hides an ASCII character inside another one. */
function checkDepth(bytes: Buffer): void {
  let depth = 0;
  let isInString = false;
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i];
    if (isInString) {
      if (byte === 0x5c) i++;
      else if (byte === 0x22) isInString = false;
    } else if (byte === 0x22) isInString = true;
    else if (byte === 0x5b || byte === 0x7b) {
      if (++depth > maxDepth) throw requestError(`The body nests arrays and objects deeper than ${String(maxDepth)} levels.`);
    } else if (byte === 0x5d || byte === 0x7d) depth--;
  }
}

/** V8's message without the excerpt of the body, which may be long or private. */
function positionOf(cause: unknown): string {
  const message = cause instanceof Error ? cause.message : '';
  if (/end of JSON input|unterminated/i.test(message)) return 'it ends too early';
  return `unexpected character ${/at position \d+/.exec(message)?.[0] ?? ''}`.trimEnd();
}

function printable(value: string): string {
  return JSON.stringify(value.slice(0, 60));
}
