import type { Middleware } from 'koa';
import { toHttpFailure } from '../openai/errors.js';

/** Turns whatever a route throws into the API's error envelope. The request log, which wraps it, has the cause. */
export const errorHandler: Middleware = async (ctx, next) => {
  try {
    await next();
  } catch (thrown) {
    ctx.state.error = thrown;
    // A stream that has begun reports its errors itself.
    if (ctx.res.headersSent) return;
    const { status, headers, body } = toHttpFailure(thrown);
    ctx.respond = true;
    ctx.status = status;
    ctx.set(headers);
    ctx.body = body;
  }
};
