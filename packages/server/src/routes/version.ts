import type { Endpoint } from './endpoint.js';

export const version: Endpoint = {
  method: 'GET',
  path: '/version',
  access: 'key',
  summary: 'version of the server',
  handle: (ctx, { settings }) => {
    ctx.body = { version: settings.version };
  },
};
