import { randomUUID } from 'node:crypto';
import type { TokenOutput } from '@moe-server/engine';
import { ChoiceText } from '../openai/choice.js';
import type { ChoiceDelta, ChoiceFinish } from '../openai/choice.js';
import { requestError } from '../openai/errors.js';
import { completionLogprobs, numCharacters, promptLogprobs } from '../openai/logprobs.js';
import type { CompletionLogprobs } from '../openai/logprobs.js';
import { requirePlausibleLength } from '../openai/prompt-length.js';
import { countSequences, readPrompts } from '../openai/prompts.js';
import { toSamplingParams } from '../openai/sampling.js';
import { completionRequestSchema, parseBody } from '../openai/wire-types.js';
import type { CompletionRequest } from '../openai/wire-types.js';
import { modelFor } from './endpoint.js';
import type { Endpoint, ServedModel } from './endpoint.js';
import { openExchange, readBody, requestLogOf, runChoices, streamAnswer, UsageSum, wireUsage } from './exchange.js';
import type { Exchange, PromptJob } from './exchange.js';

/** Tokens generated when a request sets no limit, as in the OpenAI API. */
const defaultMaxTokens = 16;

/** POST /v1/completions, whole or as a stream, as the OpenAI API and vLLM have it. */
export const completions: Endpoint = {
  method: 'POST',
  path: '/v1/completions',
  access: 'key',
  summary: 'continue a text or token ids (OpenAI API)',
  handle: async (ctx, server) => {
    const arrivedAt = performance.now();
    server.lifecycle.requireReady();
    const fields = parseBody(completionRequestSchema, await readBody(ctx, server), requestLogOf(ctx));
    const served = modelFor(server, fields.model);
    const leave = server.admission.enter(countSequences(fields.prompt, fields.n ?? 1));
    try {
      await answer(openExchange(ctx, server, served, arrivedAt), fields);
    } finally {
      leave();
    }
  },
};

/** A prompt as the engine gets it and as `echo` repeats it. */
interface CompletionJob extends PromptJob {
  readonly echoText: string;
}

async function answer(exchange: Exchange, fields: CompletionRequest): Promise<void> {
  const { served } = exchange;
  checkFields(fields);
  const prompts = readPrompts(fields.prompt, served.info.vocabSize);
  const jobs = await Promise.all(
    prompts.map(async (prompt): Promise<CompletionJob> => {
      if (typeof prompt === 'string') requirePlausibleLength(prompt, served.info.maxModelLen, 'prompt');
      const options = { addSpecialTokens: fields.add_special_tokens ?? true };
      const promptTokenIds = typeof prompt === 'string' ? await served.tokenizer.encode(prompt, options) : prompt;
      if (promptTokenIds.length === 0) throw requestError('prompt: the tokenizer made no token of it', { param: 'prompt' });
      const echoText = fields.echo !== true ? '' : typeof prompt === 'string' ? prompt : served.tokenizer.decode(prompt);
      return { promptTokenIds, echoText, sampling: samplingOf(fields, promptTokenIds.length, served) };
    }),
  );
  const head = {
    id: `cmpl-${randomUUID().replaceAll('-', '')}`,
    created: Math.floor(Date.now() / 1000),
    model: fields.model === undefined || fields.model === '' ? served.names[0] : fields.model,
  };
  if (fields.stream === true) await answerStream(exchange, fields, jobs, head);
  else await answerWhole(exchange, fields, jobs, head);
}

function checkFields(fields: CompletionRequest): void {
  if (fields.max_tokens === 0 && fields.echo !== true) {
    throw requestError('max_tokens: expected at least 1; 0 is for echo, to score a prompt', { param: 'max_tokens' });
  }
  if (fields.stream === true && fields.prompt_logprobs !== undefined) {
    throw requestError('prompt_logprobs: not available in a stream', { param: 'prompt_logprobs' });
  }
}

function samplingOf(fields: CompletionRequest, promptTokens: number, served: ServedModel): PromptJob['sampling'] {
  const { maxModelLen, generationDefaults } = served.info;
  const maxTokens =
    fields.max_tokens ?? Math.max(1, Math.min(generationDefaults.maxTokens ?? defaultMaxTokens, maxModelLen - promptTokens));
  const wanted = [
    fields.prompt_logprobs,
    // Echoed tokens are reported like generated ones.
    fields.echo === true ? fields.logprobs : undefined,
    // Without a token to generate the engine is only asked to score.
    maxTokens === 0 ? 0 : undefined,
  ].filter((count) => typeof count === 'number');
  const promptLogprobs = wanted.length === 0 ? undefined : Math.max(...wanted);
  return toSamplingParams(fields, { maxTokens, logprobs: fields.logprobs, promptLogprobs }, promptTokens, served.info);
}

interface AnswerHead {
  readonly id: string;
  readonly created: number;
  readonly model: string;
}

async function answerWhole(exchange: Exchange, fields: CompletionRequest, jobs: readonly CompletionJob[], head: AnswerHead): Promise<void> {
  const n = fields.n ?? 1;
  const choices = jobs.flatMap(() => Array.from({ length: n }, () => new ChoiceText()));
  const usage = new UsageSum(n);
  await runChoices(exchange, fields, jobs, n, (index, delta) => {
    choices[index]?.add(delta);
    if (delta.finish !== undefined) usage.set(index, delta.finish.usage);
  });
  const { ctx, served } = exchange;
  ctx.state.usage = usage.toWire();
  ctx.body = {
    id: head.id,
    object: 'text_completion',
    created: head.created,
    model: head.model,
    choices: choices.map((choice, index) => {
      const job = jobs[Math.floor(index / n)]!;
      const echoed = echoedTokens(fields, job, choice.prompt);
      return {
        index,
        text: job.echoText + choice.text,
        logprobs: logprobsOf(served, fields, [...echoed, ...choice.tokens], 0),
        finish_reason: choice.finish?.reason ?? null,
        stop_reason: choice.finish?.stopReason ?? null,
        ...(fields.return_token_ids === true
          ? { token_ids: choice.tokens.map(({ tokenId }) => tokenId), prompt_token_ids: job.promptTokenIds }
          : {}),
        ...(fields.prompt_logprobs === undefined
          ? {}
          : { prompt_logprobs: promptLogprobs(served.tokenizer, choice.prompt ?? [], fields.prompt_logprobs) }),
      };
    }),
    usage: usage.toWire(),
    system_fingerprint: null,
  };
}

async function answerStream(
  exchange: Exchange,
  fields: CompletionRequest,
  jobs: readonly CompletionJob[],
  head: AnswerHead,
): Promise<void> {
  const n = fields.n ?? 1;
  const usage = new UsageSum(n);
  const withUsage = fields.stream_options?.include_usage === true;
  const continuously = withUsage && fields.stream_options?.continuous_usage_stats === true;
  const choices = jobs.flatMap((job) => Array.from({ length: n }, () => new StreamedChoice(exchange.served, fields, job)));
  await streamAnswer(exchange, async (stream) => {
    const send = (wireChoices: readonly object[], more: object = {}): void => {
      stream.send({ id: head.id, object: 'text_completion', created: head.created, model: head.model, choices: wireChoices, ...more });
    };
    await runChoices(exchange, fields, jobs, n, (index, delta) => {
      const choice = choices[index]!;
      if (delta.finish !== undefined) usage.set(index, delta.finish.usage);
      const wire = choice.toWire(index, delta);
      send([wire], continuously ? { usage: choice.usage(delta.finish) } : withUsage ? { usage: null } : {});
    });
    if (withUsage) send([], { usage: usage.toWire() });
  });
  exchange.ctx.state.usage = usage.toWire();
}

/** One choice of a stream: remembers what the next chunk depends on. */
class StreamedChoice {
  private isFirst = true;
  private numTokens = 0;
  private offset = 0;

  constructor(
    private readonly served: ServedModel,
    private readonly fields: CompletionRequest,
    private readonly job: CompletionJob,
  ) {}

  toWire(index: number, delta: ChoiceDelta): object {
    const { fields, job, isFirst } = this;
    this.isFirst = false;
    const echoed = isFirst ? echoedTokens(fields, job, delta.prompt) : [];
    const generated = delta.token === undefined ? [] : [delta.token];
    this.numTokens += generated.length;
    const tokens = [...echoed, ...generated];
    const logprobs = tokens.length === 0 ? null : logprobsOf(this.served, fields, tokens, this.offset);
    for (const { tokenId } of tokens) this.offset += numCharacters(this.served.tokenizer.tokenText(tokenId));
    return {
      index,
      text: (isFirst ? job.echoText : '') + delta.text,
      logprobs,
      finish_reason: delta.finish?.reason ?? null,
      stop_reason: delta.finish?.stopReason ?? null,
      ...(fields.return_token_ids === true ? { token_ids: generated.map(({ tokenId }) => tokenId) } : {}),
      ...(isFirst && fields.return_token_ids === true ? { prompt_token_ids: job.promptTokenIds } : {}),
    };
  }

  usage(finish: ChoiceFinish | undefined): object {
    const soFar = { promptTokens: this.job.promptTokenIds.length, completionTokens: this.numTokens, cachedTokens: 0 };
    return wireUsage(finish?.usage ?? soFar);
  }
}

/** The prompt's tokens as part of the answer; empty unless echo and logprobs are both wanted. */
function echoedTokens(
  fields: CompletionRequest,
  job: CompletionJob,
  prompt: readonly (TokenOutput | undefined)[] | undefined,
): TokenOutput[] {
  if (fields.echo !== true || fields.logprobs === undefined) return [];
  return job.promptTokenIds.map(
    (tokenId, position) => prompt?.[position] ?? { tokenId, logprob: undefined, rank: undefined, topLogprobs: undefined },
  );
}

function logprobsOf(
  served: ServedModel,
  fields: CompletionRequest,
  tokens: readonly TokenOutput[],
  firstOffset: number,
): CompletionLogprobs | null {
  if (fields.logprobs === undefined) return null;
  const spelling = { tokenizer: served.tokenizer, asTokenIds: fields.return_tokens_as_token_ids ?? false };
  return completionLogprobs(spelling, tokens, fields.logprobs, firstOffset);
}
