import { readMessages } from '../openai/chat-messages.js';
import { requestError } from '../openai/errors.js';
import { parseBody, tokenizeRequestSchema } from '../openai/wire-types.js';
import { namedModel } from './endpoint.js';
import type { Endpoint } from './endpoint.js';
import { readBody, requestLogOf } from './exchange.js';
import { chatPrompt } from './render-prompt.js';

/** POST /tokenize in vLLM's shape: `{prompt}` or `{messages}` to `{count, max_model_len, tokens, token_strs}`. */
export const tokenize: Endpoint = {
  method: 'POST',
  path: '/tokenize',
  access: 'key',
  summary: 'text or a conversation to token ids',
  handle: async (ctx, server) => {
    const fields = parseBody(tokenizeRequestSchema, await readBody(ctx, server), requestLogOf(ctx));
    const served = namedModel(server, fields.model);
    if ((fields.prompt === undefined) === (fields.messages === undefined)) {
      throw requestError('prompt: expected either prompt or messages', { param: 'prompt' });
    }
    const tokens =
      fields.messages === undefined
        ? await served.tokenizer.encode(fields.prompt ?? '', { addSpecialTokens: fields.add_special_tokens ?? true })
        : await chatPrompt(served, fields, readMessages(fields.messages), fields.add_special_tokens ?? false);
    ctx.body = {
      count: tokens.length,
      max_model_len: served.info.maxModelLen,
      tokens,
      token_strs: fields.return_token_strs === true ? tokens.map((tokenId) => served.tokenizer.idToToken(tokenId) ?? '') : null,
    };
  },
};
