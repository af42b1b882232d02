import type { Endpoint } from './endpoint.js';

/** A page for whoever opens the address in a browser: what this is and what there is to ask. */
export function home(endpoints: readonly Endpoint[]): Endpoint {
  const lines = endpoints.map(({ method, path, summary }) => `  ${method.padEnd(4)} ${path.replace('*id', '{id}').padEnd(24)} ${summary}`);
  return {
    method: 'GET',
    path: '/',
    access: 'key',
    summary: 'this list',
    handle: (ctx, { settings, served, lifecycle }) => {
      const name = served()?.names[0];
      const model = name === undefined ? 'no model yet' : `model ${JSON.stringify(name)}`;
      const body = `'{"messages": [{"role": "user", "content": "Hello"}]}'`;
      ctx.type = 'text/plain; charset=utf-8';
      ctx.body = [
        `moe-server ${settings.version}: ${model}, ${lifecycle.phase}`,
        '',
        ...lines,
        '',
        'The /v1 paths speak the OpenAI API: point any client of it at this address with the base path /v1.',
        `  curl ${ctx.protocol}://${ctx.host}/v1/chat/completions -H 'content-type: application/json' -d ${body}`,
        '',
      ].join('\n');
    },
  };
}
