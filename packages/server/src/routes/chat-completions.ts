import { randomUUID } from 'node:crypto';

import type { TokenOutput } from '@moe-server/engine';
import { readMessages } from '../openai/chat-messages.js';
import { ChoiceText } from '../openai/choice.js';
import { requestError } from '../openai/errors.js';
import { chatLogprobs, promptLogprobs } from '../openai/logprobs.js';
import type { ChatLogprobs } from '../openai/logprobs.js';
import { toSamplingParams } from '../openai/sampling.js';
import { chatRequestSchema, parseBody } from '../openai/wire-types.js';
import type { ChatRequest } from '../openai/wire-types.js';
import { modelFor } from './endpoint.js';
import type { Endpoint, ServedModel } from './endpoint.js';
import { openExchange, readBody, requestLogOf, runChoices, streamAnswer, UsageSum, wireUsage } from './exchange.js';
import type { Exchange, PromptJob } from './exchange.js';
import { chatPrompt } from './render-prompt.js';

/** POST /v1/chat/completions, whole or as a stream, as the OpenAI API and vLLM have it. */
export const chatCompletions: Endpoint = {
  method: 'POST',
  path: '/v1/chat/completions',
  access: 'key',
  summary: 'answer a conversation (OpenAI API)',
  handle: async (ctx, server) => {
    const arrivedAt = performance.now();
    server.lifecycle.requireReady();
    const fields = parseBody(chatRequestSchema, await readBody(ctx, server), requestLogOf(ctx));
    const served = modelFor(server, fields.model);
    const leave = server.admission.enter(fields.n ?? 1);
    try {
      await answer(openExchange(ctx, server, served, arrivedAt), fields);
    } finally {
      leave();
    }
  },
};

async function answer(exchange: Exchange, fields: ChatRequest): Promise<void> {
  const job = await prepare(exchange.served, fields);
  const head = {
    id: `chatcmpl-${randomUUID().replaceAll('-', '')}`,
    created: Math.floor(Date.now() / 1000),
    model: fields.model === undefined || fields.model === '' ? exchange.served.names[0] : fields.model,
  };
  if (fields.stream === true) await answerStream(exchange, fields, job, head);
  else await answerWhole(exchange, fields, job, head);
}

async function prepare(served: ServedModel, fields: ChatRequest): Promise<PromptJob> {
  const numTop = fields.top_logprobs ?? 0;
  if (numTop > 0 && fields.logprobs !== true) {
    throw requestError('top_logprobs: expected logprobs to be true beside it', { param: 'top_logprobs' });
  }
  if (fields.prompt_logprobs !== undefined && fields.stream === true) {
    throw requestError('prompt_logprobs: not available in a stream', { param: 'prompt_logprobs' });
  }
  const promptTokenIds = await chatPrompt(served, fields, readMessages(fields.messages), fields.add_special_tokens ?? false);
  const extras = {
    maxTokens: fields.max_completion_tokens ?? fields.max_tokens,
    logprobs: fields.logprobs === true ? numTop : undefined,
    promptLogprobs: fields.prompt_logprobs,
  };
  return { promptTokenIds, sampling: toSamplingParams(fields, extras, promptTokenIds.length, served.info) };
}

interface AnswerHead {
  readonly id: string;
  readonly created: number;
  readonly model: string;
}

async function answerWhole(exchange: Exchange, fields: ChatRequest, job: PromptJob, head: AnswerHead): Promise<void> {
  const n = fields.n ?? 1;
  const choices = Array.from({ length: n }, () => new ChoiceText());
  const usage = new UsageSum(n);
  await runChoices(exchange, fields, [job], n, (index, delta) => {
    choices[index]?.add(delta);
    if (delta.finish !== undefined) usage.set(index, delta.finish.usage);
  });
  const { ctx, served } = exchange;
  ctx.state.usage = usage.toWire();
  ctx.body = {
    id: head.id,
    object: 'chat.completion',
    created: head.created,
    model: head.model,
    choices: choices.map((choice, index) => ({
      index,
      message: { role: 'assistant', content: choice.text, refusal: null },
      logprobs: logprobsOf(served, fields, choice.tokens),
      finish_reason: choice.finish?.reason ?? null,
      stop_reason: choice.finish?.stopReason ?? null,
      ...(fields.return_token_ids === true ? { token_ids: choice.tokens.map(({ tokenId }) => tokenId) } : {}),
    })),
    usage: usage.toWire(),
    system_fingerprint: null,
    ...(fields.return_token_ids === true ? { prompt_token_ids: job.promptTokenIds } : {}),
    ...(fields.prompt_logprobs === undefined
      ? {}
      : { prompt_logprobs: promptLogprobs(served.tokenizer, choices[0]?.prompt ?? [], fields.prompt_logprobs) }),
  };
}

async function answerStream(exchange: Exchange, fields: ChatRequest, job: PromptJob, head: AnswerHead): Promise<void> {
  const { served } = exchange;
  const n = fields.n ?? 1;
  const usage = new UsageSum(n);
  const hasStarted = new Set<number>();
  const numTokens = new Map<number, number>();
  const withUsage = fields.stream_options?.include_usage === true;
  const continuously = withUsage && fields.stream_options?.continuous_usage_stats === true;
  await streamAnswer(exchange, async (stream) => {
    const send = (choices: readonly object[], more: object = {}): void => {
      stream.send({ id: head.id, object: 'chat.completion.chunk', created: head.created, model: head.model, choices, ...more });
    };
    await runChoices(exchange, fields, [job], n, (index, delta) => {
      const { token, finish } = delta;
      if (token !== undefined) numTokens.set(index, (numTokens.get(index) ?? 0) + 1);
      if (finish !== undefined) usage.set(index, finish.usage);
      const isFirst = !hasStarted.has(index);
      hasStarted.add(index);
      const choice = {
        index,
        // The role comes with the first token, not before: load generators time the first chunk.
        delta: { ...(isFirst ? { role: 'assistant' } : {}), content: delta.text },
        logprobs: token === undefined ? null : logprobsOf(served, fields, [token]),
        finish_reason: finish?.reason ?? null,
        ...(finish === undefined ? {} : { stop_reason: finish.stopReason }),
        ...(fields.return_token_ids === true ? { token_ids: token === undefined ? [] : [token.tokenId] } : {}),
      };
      const completionTokens = numTokens.get(index) ?? 0;
      const soFar = { promptTokens: job.promptTokenIds.length, completionTokens, cachedTokens: 0 };
      send([choice], {
        ...(isFirst && fields.return_token_ids === true ? { prompt_token_ids: job.promptTokenIds } : {}),
        ...(continuously ? { usage: wireUsage(finish?.usage ?? soFar) } : withUsage ? { usage: null } : {}),
      });
    });
    if (withUsage) send([], { usage: usage.toWire() });
  });
  exchange.ctx.state.usage = usage.toWire();
}

function logprobsOf(served: ServedModel, fields: ChatRequest, tokens: readonly TokenOutput[]): ChatLogprobs | null {
  if (fields.logprobs !== true) return null;
  const spelling = { tokenizer: served.tokenizer, asTokenIds: fields.return_tokens_as_token_ids ?? false };
  return chatLogprobs(spelling, tokens, fields.top_logprobs ?? 0);
}
