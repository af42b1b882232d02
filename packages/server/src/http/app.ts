import { Router } from '@koa/router';
import Koa from 'koa';
import type { Context, Middleware } from 'koa';
import { requestError } from '../openai/errors.js';
import { chatCompletions } from '../routes/chat-completions.js';
import { completions } from '../routes/completions.js';
import { detokenize } from '../routes/detokenize.js';
import type { Endpoint, ServerContext } from '../routes/endpoint.js';
import { health, live, ready } from '../routes/health.js';
import { home } from '../routes/home.js';
import { metrics } from '../routes/metrics.js';
import { model, models } from '../routes/models.js';
import { plan } from '../routes/plan.js';
import { tokenize } from '../routes/tokenize.js';
import { version } from '../routes/version.js';
import { ApiKeys } from './api-keys.js';
import { cors } from './cors.js';
import { errorHandler } from './error-handler.js';
import { requestLog } from './request-log.js';

/** Every path of the server, once. */
export const endpoints: readonly Endpoint[] = [
  chatCompletions,
  completions,
  models,
  model,
  tokenize,
  detokenize,
  plan,
  health,
  live,
  ready,
  metrics,
  version,
];

/**
 * The Koa application over a server context: log, errors, CORS, then the routes. Knows no engine and no model by itself, so that
 * tests run it over a scripted one.
 */
export function createApp(server: ServerContext): Koa {
  const app = new Koa();
  const keys = new ApiKeys(server.settings.apiKeys);
  // Without both, `/V1/models` and `/v1/models/` would reach the same handlers under names no guard expects.
  const router = new Router({ sensitive: true, strict: true });
  for (const endpoint of [...endpoints, home(endpoints)]) {
    const method = endpoint.method === 'GET' ? 'get' : 'post';
    router[method](endpoint.path, async (ctx: Context) => {
      ctx.state.handler = endpoint.path;
      if (endpoint.access === 'key') keys.check(ctx.req.headers);
      await endpoint.handle(ctx, server);
    });
  }
  app.use(measure(server));
  app.use(requestLog(server.log));
  app.use(errorHandler);
  app.use(cors(server.settings.corsOrigins));
  app.use(router.routes() as Middleware);
  app.use(unmatched(router));
  // Everything is caught above; what is left are connections that broke while an answer was being written.
  app.on('error', (error: unknown) => {
    server.log.debug({ err: error }, 'connection error');
  });
  return app;
}

/** Counts every answer under its route's pattern, whatever became of it. */
function measure(server: ServerContext): Middleware {
  return async (ctx, next) => {
    const startedAt = performance.now();
    ctx.res.once('close', () => {
      const handler = typeof ctx.state.handler === 'string' ? ctx.state.handler : 'none';
      const method = ctx.method === 'GET' || ctx.method === 'POST' ? ctx.method : 'other';
      server.metrics.countHttp(handler, method, ctx.res.statusCode, (performance.now() - startedAt) / 1000);
    });
    await next();
  };
}

/** 405 with `Allow` for a known path, else 404. */
function unmatched(router: Router): Middleware {
  return (ctx) => {
    const allowed = new Set(router.match(ctx.path, ctx.method).path.flatMap((layer) => layer.methods));
    if (allowed.size > 0) {
      const allow = [...allowed].join(', ');
      throw requestError(`${ctx.method} is not served on this path; it takes ${allow}.`, { status: 405, headers: { allow } });
    }
    const path = JSON.stringify(ctx.path.slice(0, 100));
    throw requestError(`There is nothing at ${path}; GET / lists what there is.`, { status: 404, wireCode: 'not_found' });
  };
}
