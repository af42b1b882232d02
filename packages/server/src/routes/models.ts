import { namedModel } from './endpoint.js';
import type { Endpoint, ServedModel } from './endpoint.js';

/** One entry of the list, with what vLLM adds: benchmark tools read `root`, routers `max_model_len`. */
function modelEntry(served: ServedModel, id: string): Record<string, unknown> {
  return {
    id,
    object: 'model',
    created: served.createdAt,
    owned_by: 'moe-server',
    root: served.root,
    parent: null,
    max_model_len: served.info.maxModelLen,
  };
}

export const models: Endpoint = {
  method: 'GET',
  path: '/v1/models',
  access: 'key',
  summary: 'the model that is served',
  handle: (ctx, server) => {
    const served = namedModel(server, undefined);
    ctx.body = { object: 'list', data: served.names.map((name) => modelEntry(served, name)) };
  },
};

/** The name is the rest of the path: names may hold slashes, `organisation/model`. */
export const model: Endpoint = {
  method: 'GET',
  path: '/v1/models/*id',
  access: 'key',
  summary: 'one model by name',
  handle: (ctx, server) => {
    const id = String((ctx.params as Record<string, unknown>).id);
    ctx.body = modelEntry(namedModel(server, id), id);
  },
};
