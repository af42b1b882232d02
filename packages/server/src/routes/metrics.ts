import type { Endpoint } from './endpoint.js';

export const metrics: Endpoint = {
  method: 'GET',
  path: '/metrics',
  access: 'key',
  summary: 'Prometheus metrics',
  handle: async (ctx, server) => {
    ctx.type = server.metrics.registry.contentType;
    ctx.body = await server.metrics.registry.metrics();
  },
};
