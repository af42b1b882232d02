import type { Middleware } from 'koa';

/**
 * Cross-origin access for listed origins only, never with credentials. Preflights are answered here, before any key is asked
 * for: a browser sends none with them.
 *
 * @param origins - exact origins (`https://chat.example`), or `*` for all; empty = no header at all.
 */
export function cors(origins: readonly string[]): Middleware {
  return async (ctx, next: () => Promise<void>) => {
    const origin = ctx.get('origin');
    if (origins.length === 0 || origin === '') return next();
    ctx.vary('Origin');
    if (!origins.includes('*') && !origins.includes(origin)) return next();
    ctx.set('access-control-allow-origin', origins.includes('*') ? '*' : origin);
    ctx.set('access-control-expose-headers', 'x-request-id, retry-after');
    if (ctx.method !== 'OPTIONS' || ctx.get('access-control-request-method') === '') return next();
    ctx.set('access-control-allow-methods', 'GET, POST');
    ctx.set('access-control-allow-headers', 'authorization, content-type, x-api-key, x-request-id');
    ctx.set('access-control-max-age', '600');
    ctx.status = 204;
  };
}
