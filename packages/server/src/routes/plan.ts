import { namedModel } from './endpoint.js';
import type { Endpoint } from './endpoint.js';

/** Which kernel serves which layer, and why the others do not: the same document as `moe-server plan --json`. */
export const plan: Endpoint = {
  method: 'GET',
  path: '/v1/moe/plan',
  access: 'key',
  summary: 'which kernel serves which layer, and why',
  handle: (ctx, server) => {
    ctx.body = namedModel(server, undefined).info.plan;
  },
};
