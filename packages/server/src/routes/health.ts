import type { Endpoint } from './endpoint.js';

/** The HTTP process answers. Says nothing about the engine: restarting this process would not help it. */
export const live: Endpoint = {
  method: 'GET',
  path: '/live',
  access: 'public',
  summary: 'the HTTP process is alive',
  handle: (ctx) => {
    ctx.body = { status: 'live' };
  },
};

/** The engine lives, or is on its way: 503 once it has died, also while it restarts, and while the model loads. */
export const health: Endpoint = {
  method: 'GET',
  path: '/health',
  access: 'public',
  summary: 'the engine is alive (503 while it loads, restarts or is dead)',
  handle: (ctx, { lifecycle }) => {
    const { phase } = lifecycle;
    if (phase !== 'draining') lifecycle.requireReady();
    ctx.body = { status: 'ok' };
  },
};

/** New requests are served now: the model is loaded and the server is not draining. For load balancers. */
export const ready: Endpoint = {
  method: 'GET',
  path: '/ready',
  access: 'public',
  summary: 'new requests are served (503 while loading or draining)',
  handle: (ctx, { lifecycle }) => {
    lifecycle.requireReady();
    ctx.body = { status: 'ready' };
  },
};
