import { isMoeError, MoeError } from '@moe-server/core';
import type { ErrorCode } from '@moe-server/core';

/** The body of every failed answer, as the OpenAI API has it. */
export interface ErrorEnvelope {
  readonly error: {
    readonly message: string;
    readonly type: string;
    /** JSON path of the offending field, null when no field is to blame. */
    readonly param: string | null;
    readonly code: string | null;
  };
}

/** What one failure becomes on the wire. */
export interface HttpFailure {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: ErrorEnvelope;
}

/** What an error that was made for the wire says beside its message; lies in `MoeError.details`. */
export interface WireDetails {
  readonly status?: number;
  readonly param?: string;
  /** The `code` of the envelope. */
  readonly wireCode?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

/** An error for the caller of the API, HTTP 400 unless `details.status` says otherwise. */
export function requestError(message: string, details: WireDetails = {}, code: ErrorCode = 'MOE_REQUEST_INVALID'): MoeError {
  return new MoeError(code, message, { ...details });
}

/** A field the API knows and this server does not serve. */
export function unsupportedParameter(param: string, message: string): MoeError {
  return requestError(message, { param, wireCode: 'unsupported_parameter' }, 'MOE_REQUEST_UNSUPPORTED');
}

/** The server is there, the model is not: loading, restarting or draining. */
export function notReady(message: string, retryAfterSeconds: number): MoeError {
  return requestError(message, { headers: { 'retry-after': String(retryAfterSeconds) } }, 'MOE_CAPACITY_NOT_READY');
}

const statusByCode: Partial<Record<ErrorCode, number>> = {
  MOE_CAPACITY_QUEUE_FULL: 429,
  MOE_CAPACITY_MEMORY: 503,
  MOE_CAPACITY_NOT_READY: 503,
  MOE_DEVICE_LOST: 503,
};

const wireCodeByCode: Partial<Record<ErrorCode, string>> = {
  MOE_REQUEST_CONTEXT_LENGTH: 'context_length_exceeded',
  MOE_REQUEST_UNSUPPORTED: 'unsupported_parameter',
  MOE_CAPACITY_QUEUE_FULL: 'rate_limit_exceeded',
  MOE_CAPACITY_NOT_READY: 'not_ready',
  MOE_CAPACITY_MEMORY: 'out_of_memory',
};

/** Families whose messages are written for callers; those of the others may name files and stay in the log. */
const publicFamilies: ReadonlySet<string> = new Set(['request', 'capacity', 'device']);

/** The one place that turns errors into HTTP. Never leaks a stack, a path or the text of an unexpected error. */
export function toHttpFailure(thrown: unknown): HttpFailure {
  if (!isMoeError(thrown) || !publicFamilies.has(thrown.family)) {
    return failure(500, 'The server failed on this request. Its log has the cause under this request id.', null, 'internal_error');
  }
  const details = thrown.details as WireDetails;
  const status = details.status ?? statusByCode[thrown.code] ?? (thrown.family === 'request' ? 400 : 500);
  const wireCode = details.wireCode ?? wireCodeByCode[thrown.code] ?? null;
  const headers = details.headers ?? (status === 429 || status === 503 ? { 'retry-after': '1' } : {});
  return failure(status, thrown.message, typeof details.param === 'string' ? details.param : null, wireCode, headers);
}

function failure(
  status: number,
  message: string,
  param: string | null,
  code: string | null,
  headers: Readonly<Record<string, string>> = {},
): HttpFailure {
  return { status, headers, body: { error: { message, type: typeOf(status), param, code } } };
}

function typeOf(status: number): string {
  if (status === 401) return 'authentication_error';
  if (status === 429) return 'rate_limit_error';
  if (status === 503) return 'unavailable_error';
  return status >= 500 ? 'server_error' : 'invalid_request_error';
}
