import { randomUUID } from 'node:crypto';
import type { Middleware } from 'koa';
import type { Logger } from 'pino';
import { toHttpFailure } from '../openai/errors.js';

/** Reads as one token in any log, and cannot end a header. */
const requestIdPattern = /^[\x21-\x7e]{1,128}$/;

/** Paths that are asked every few seconds by machines; logged at debug. */
const quietPaths: ReadonlySet<string> = new Set(['/health', '/live', '/ready', '/metrics']);

/** Our faults with everything there is to know; the callers' with the sentence that they got. */
function logFailure(log: Logger, line: object, error: unknown): void {
  const { status, body } = toHttpFailure(error);
  if (status >= 500 && status !== 503) log.error({ ...line, err: error }, 'request failed');
  else log.info({ ...line, reason: body.error.message }, 'request');
}

/**
 * Gives every request an id (the caller's `x-request-id`, or a new one), sends it back, and writes one line when the answer has gone out or
 * the caller has. No prompt, no header and no query ends up in the log.
 *
 * Leaves `ctx.state.requestId` and `ctx.state.log` for the routes.
 */
export function requestLog(log: Logger): Middleware {
  return async (ctx, next) => {
    const startedAt = performance.now();
    const offered = ctx.get('x-request-id');
    const requestId = requestIdPattern.test(offered) ? offered : `req-${randomUUID()}`;
    const requestLogger = log.child({ requestId });
    ctx.state.requestId = requestId;
    ctx.state.log = requestLogger;
    ctx.set('x-request-id', requestId);
    ctx.res.once('close', () => {
      const error: unknown = ctx.state.error;
      const isAnswered = ctx.res.writableFinished;
      const status = isAnswered ? ctx.res.statusCode : 499;
      const line = {
        method: ctx.method,
        path: ctx.path.slice(0, 200),
        status,
        ms: Math.round(performance.now() - startedAt),
        ...(isAnswered ? {} : { aborted: true }),
        ...(ctx.state.usage as object | undefined),
      };
      // A client that left explains every error that followed.
      if (isAnswered && error !== undefined) logFailure(requestLogger, line, error);
      else if (quietPaths.has(ctx.path)) requestLogger.debug(line, 'request');
      else requestLogger.info(line, 'request');
    });
    await next();
  };
}
