import { z } from 'zod';
import type { Logger } from 'pino';
import { requestError } from './errors.js';
import { refuseUnsupported } from './unsupported.js';

/**
 * What clients send, field by field, snake_case as on the wire. `null` means the same as left out, as in the OpenAI API.
 * Ranges are those of the OpenAI API and, for fields it lacks, of vLLM.
 */

/** More alternatives per token than this are refused, as by the OpenAI API. */
export const maxTopLogprobs = 20;

/** Sequences per prompt. */
const maxChoices = 128;

/** As in the OpenAI API. */
const maxStopStrings = 4;
const maxStopLength = 1024;
const maxStopTokenIds = 128;
const maxLogitBiases = 1024;

/** Beyond 2^53 JSON numbers lose digits on their way in, so a seed there would not be the one that was sent. */
const safeInteger = z.int();
const stopString = z.string().min(1).max(maxStopLength);

const samplingFields = {
  model: z.string().optional(),
  stream: z.boolean().optional(),
  stream_options: z.object({ include_usage: z.boolean().nullish(), continuous_usage_stats: z.boolean().nullish() }).optional(),
  n: z.int().min(1).max(maxChoices).optional(),
  min_tokens: z.int().min(0).optional(),
  temperature: z.number().min(0).max(2).optional(),
  top_p: z.number().gt(0).max(1).optional(),
  /** 0 and −1: off. */
  top_k: z
    .int()
    .min(-1)
    .max(2 ** 31 - 1)
    .optional(),
  min_p: z.number().min(0).max(1).optional(),
  repetition_penalty: z.number().min(0.01).max(10).optional(),
  presence_penalty: z.number().min(-2).max(2).optional(),
  frequency_penalty: z.number().min(-2).max(2).optional(),
  seed: safeInteger.optional(),
  stop: z.union([stopString, z.array(stopString).max(maxStopStrings)], { error: stopMessage }).optional(),
  stop_token_ids: z.array(z.int().min(0)).max(maxStopTokenIds).optional(),
  include_stop_str_in_output: z.boolean().optional(),
  skip_special_tokens: z.boolean().optional(),
  ignore_eos: z.boolean().optional(),
  logit_bias: z.record(z.string().regex(/^\d{1,9}$/, 'expected a token id'), z.number().min(-100).max(100)).optional(),
  prompt_logprobs: z.int().min(0).max(maxTopLogprobs).optional(),
  return_token_ids: z.boolean().optional(),
  return_tokens_as_token_ids: z.boolean().optional(),
  add_special_tokens: z.boolean().optional(),
};

const templateFields = {
  chat_template_kwargs: z.record(z.string(), z.unknown()).optional(),
  add_generation_prompt: z.boolean().optional(),
  continue_final_message: z.boolean().optional(),
  reasoning_effort: z.string().max(32).optional(),
};

/** Read further by chat-messages.ts. */
const messageSchema = z.object({
  role: z.enum(['system', 'developer', 'user', 'assistant', 'tool']),
  content: z.unknown().optional(),
  name: z.string().nullish(),
  reasoning_content: z.string().nullish(),
  tool_calls: z.unknown().optional(),
  tool_call_id: z.string().nullish(),
});

const messagesField = z.array(messageSchema).min(1).max(10_000);

export const chatRequestSchema = z.object({
  ...samplingFields,
  ...templateFields,
  messages: messagesField,
  max_tokens: z.int().min(1).optional(),
  max_completion_tokens: z.int().min(1).optional(),
  logprobs: z.boolean().optional(),
  top_logprobs: z.int().min(0).max(maxTopLogprobs).optional(),
});

export const completionRequestSchema = z.object({
  ...samplingFields,
  /** Text, token ids, or a list of either; read further by prompts.ts. */
  prompt: z.unknown().optional(),
  /** 0 only with `echo`. */
  max_tokens: z.int().min(0).optional(),
  logprobs: z.int().min(0).max(maxTopLogprobs).optional(),
  echo: z.boolean().optional(),
});

export const tokenizeRequestSchema = z.object({
  ...templateFields,
  model: z.string().optional(),
  prompt: z.string().optional(),
  messages: messagesField.optional(),
  add_special_tokens: z.boolean().optional(),
  return_token_strs: z.boolean().optional(),
});

export const detokenizeRequestSchema = z.object({
  model: z.string().optional(),
  tokens: z.array(z.int().min(0)).max(4_000_000),
});

export type ChatRequest = z.infer<typeof chatRequestSchema>;
export type CompletionRequest = z.infer<typeof completionRequestSchema>;
export type WireMessage = z.infer<typeof messageSchema>;
export type SamplingFields = Pick<ChatRequest & CompletionRequest, keyof typeof samplingFields>;
export type TemplateFields = Pick<ChatRequest, keyof typeof templateFields>;

/** Accepted and without effect here: bookkeeping of the OpenAI platform, and switches that matter only beside refused fields. */
const ignoredFields: ReadonlySet<string> = new Set([
  'user',
  'metadata',
  'service_tier',
  'store',
  'safety_identifier',
  'prompt_cache_key',
  'parallel_tool_calls',
  'spaces_between_special_tokens',
  'request_id',
]);

/**
 * Checks a body against one of the schemas above: fields that the API knows and this server does not serve are refused first, fields
 * nobody knows are ignored and logged at debug.
 *
 * @throws {MoeError} MOE_REQUEST_INVALID or MOE_REQUEST_UNSUPPORTED with `param`.
 */
export function parseBody<Shape extends z.ZodRawShape>(
  schema: z.ZodObject<Shape>,
  body: Readonly<Record<string, unknown>>,
  log: Pick<Logger, 'debug'>,
): z.infer<z.ZodObject<Shape>> {
  refuseUnsupported(body, schema.shape);
  const ignored = Object.keys(body).filter((name) => !Object.hasOwn(schema.shape, name) && !ignoredFields.has(name));
  if (ignored.length > 0) {
    const fields = ignored.slice(0, 20).map((name) => name.slice(0, 60));
    log.debug({ fields, numFields: ignored.length }, 'unknown body fields are ignored');
  }
  const result = schema.safeParse(withoutNulls(body));
  if (!result.success) throw invalidField(result.error);
  if ('logit_bias' in result.data) limitLogitBias(result.data.logit_bias);
  return result.data;
}

function withoutNulls(body: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null));
}

function invalidField(error: z.ZodError): Error {
  const issue = error.issues[0];
  const param = formatPath(issue?.path ?? []);
  return requestError(`${param}: ${issue?.message ?? 'invalid'}`, { param });
}

function limitLogitBias(value: unknown): void {
  const numBiases = typeof value === 'object' && value !== null ? Object.keys(value).length : 0;
  if (numBiases <= maxLogitBiases) return;
  const message = `logit_bias: expected at most ${String(maxLogitBiases)} entries, got ${String(numBiases)}`;
  throw requestError(message, { param: 'logit_bias' });
}

/** `messages[3].content`, as error messages and `param` write it. */
export function formatPath(path: readonly PropertyKey[]): string {
  let text = '';
  for (const step of path) {
    if (typeof step === 'number') text += `[${String(step)}]`;
    else text += (text === '' ? '' : '.') + String(step).slice(0, 60);
  }
  return text;
}

function stopMessage(): string {
  return `expected a string or at most ${String(maxStopStrings)} strings, each of 1 to ${String(maxStopLength)} characters`;
}
