import { requestError } from '../openai/errors.js';
import { detokenizeRequestSchema, parseBody } from '../openai/wire-types.js';
import { namedModel } from './endpoint.js';
import type { Endpoint } from './endpoint.js';
import { readBody, requestLogOf } from './exchange.js';

/** POST /detokenize in vLLM's shape: `{tokens}` to `{prompt}`. */
export const detokenize: Endpoint = {
  method: 'POST',
  path: '/detokenize',
  access: 'key',
  summary: 'token ids to text',
  handle: async (ctx, server) => {
    const { model, tokens } = parseBody(detokenizeRequestSchema, await readBody(ctx, server), requestLogOf(ctx));
    const { tokenizer, info } = namedModel(server, model);
    const unknown = tokens.findIndex((tokenId) => tokenId >= info.vocabSize);
    if (unknown >= 0) {
      const param = `tokens[${String(unknown)}]`;
      throw requestError(`${param}: expected a token id below ${String(info.vocabSize)}, got ${String(tokens[unknown])}`, { param });
    }
    ctx.body = { prompt: tokenizer.decode(tokens) };
  },
};
