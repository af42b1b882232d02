import type { Context } from 'koa';
import type { Logger } from 'pino';
import type { ChatTemplate, Tokenizer } from '@moe-server/engine';
import type { EngineClient } from '../engine/engine-client.js';
import type { ModelInfo } from '../engine/engine-protocol.js';
import type { Admission } from '../http/admission.js';
import type { Lifecycle } from '../http/lifecycle.js';
import type { ServerMetrics } from '../http/metrics.js';
import { requestError } from '../openai/errors.js';

/** One path and method. `public` ones answer without a key; whatever does not say so is guarded. */
export interface Endpoint {
  readonly method: 'GET' | 'POST';
  /** In the router's syntax; also the `handler` label of the HTTP metrics. */
  readonly path: string;
  readonly access: 'public' | 'key';
  /** One line for the list at `/`. */
  readonly summary: string;
  readonly handle: (ctx: Context, server: ServerContext) => void | Promise<void>;
}

/** What the routes work with. One per server; all state that changes is behind it. */
export interface ServerContext {
  readonly settings: HttpSettings;
  readonly lifecycle: Lifecycle;
  readonly admission: Admission;
  readonly metrics: ServerMetrics;
  readonly engine: EngineClient;
  readonly log: Logger;
  /** Undefined until the model is loaded. */
  readonly served: () => ServedModel | undefined;
}

export interface HttpSettings {
  readonly apiKeys: readonly string[];
  readonly corsOrigins: readonly string[];
  readonly maxBodyBytes: number;
  readonly bodyTimeoutMs: number;
  readonly keepAliveMs: number;
  readonly maxBufferedBytes: number;
  readonly version: string;
}

export interface ServedModel {
  /** Names that requests may use; the first is shown. */
  readonly names: readonly [string, ...string[]];
  /** Where the weights come from, for `root` in the list of models. */
  readonly root: string;
  /** Seconds since 1970. */
  readonly createdAt: number;
  readonly info: ModelInfo;
  readonly tokenizer: Tokenizer;
  readonly chatTemplate: Pick<ChatTemplate, 'render'>;
}

/**
 * The model that a request is for. Leaving `model` out asks for the only one there is.
 *
 * @throws {MoeError} MOE_CAPACITY_NOT_READY while there is none; status 404 for another name.
 */
export function modelFor(server: ServerContext, name: string | undefined): ServedModel {
  server.lifecycle.requireReady();
  return namedModel(server, name);
}

/** As {@link modelFor}, also while draining or restarting: for endpoints that need no engine. */
export function namedModel(server: ServerContext, name: string | undefined): ServedModel {
  const served = server.served();
  if (served === undefined) {
    server.lifecycle.requireReady();
    throw new TypeError('ready without a model');
  }
  if (name === undefined || name === '' || served.names.includes(name)) return served;
  const shown = JSON.stringify(name.length > 80 ? `${name.slice(0, 80)}…` : name);
  const message = `The model ${shown} does not exist here; this server has ${served.names.map((known) => JSON.stringify(known)).join(', ')}.`;
  throw requestError(message, { status: 404, param: 'model', wireCode: 'model_not_found' });
}
