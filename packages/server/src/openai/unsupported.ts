import { unsupportedParameter } from './errors.js';

/**
 * Fields that the OpenAI API or vLLM has and this server does not serve. Dropping one silently would answer a question that
 * nobody asked, so each is refused, unless its value asks for nothing.
 */
interface UnsupportedField {
  /** Values that mean "without it". null and undefined always do. */
  readonly isNeutral: (value: unknown, body: Readonly<Record<string, unknown>>) => boolean;
  readonly because: string;
}

const isFalse = (value: unknown): boolean => value === false;
const isEmptyList = (value: unknown): boolean => Array.isArray(value) && value.length === 0;
const never = (): boolean => false;

const structured = { isNeutral: never, because: 'constrained output is not served' };
const tools = 'tool calls are not served';

const unsupportedFields: Readonly<Record<string, UnsupportedField>> = {
  tools: { isNeutral: isEmptyList, because: tools },
  tool_choice: { isNeutral: (value) => value === 'none' || value === 'auto', because: tools },
  functions: { isNeutral: isEmptyList, because: tools },
  function_call: { isNeutral: (value) => value === 'none' || value === 'auto', because: tools },
  response_format: {
    isNeutral: (value) => typeof value === 'object' && value !== null && 'type' in value && value.type === 'text',
    because: 'only {"type": "text"} is served',
  },
  structured_outputs: structured,
  guided_json: structured,
  guided_regex: structured,
  guided_choice: structured,
  guided_grammar: structured,
  structural_tag: structured,
  modalities: {
    isNeutral: (value) => Array.isArray(value) && value.every((modality) => modality === 'text'),
    because: 'only text is served',
  },
  audio: { isNeutral: never, because: 'only text is served' },
  suffix: { isNeutral: (value) => value === '', because: 'filling in the middle is not served' },
  best_of: { isNeutral: (value, { n }) => value === (n ?? 1), because: 'only best_of equal to n is served' },
  use_beam_search: { isNeutral: isFalse, because: 'beam search is not served' },
  length_penalty: { isNeutral: (value) => value === 1, because: 'beam search is not served' },
  prompt_embeds: { isNeutral: never, because: 'prompts are text or token ids' },
  chat_template: { isNeutral: never, because: "only the model's own template is rendered" },
  documents: { isNeutral: isEmptyList, because: 'retrieval documents are not served' },
  allowed_token_ids: { isNeutral: never, because: 'use logit_bias' },
  bad_words: { isNeutral: isEmptyList, because: 'use logit_bias' },
  logits_processors: { isNeutral: isEmptyList, because: 'processors from requests are not run' },
  truncate_prompt_tokens: { isNeutral: never, because: 'shorten the prompt before sending it' },
  web_search_options: { isNeutral: never, because: 'web search is not served' },
  priority: { isNeutral: (value) => value === 0, because: 'requests are served in the order of arrival' },
  cache_salt: {
    isNeutral: never,
    because: 'the prefix cache is shared by all callers; start with --no-enable-prefix-caching to turn it off',
  },
  thinking_token_budget: { isNeutral: never, because: 'use max_completion_tokens' },
  include_reasoning: { isNeutral: (value) => value === true, because: 'reasoning is not separated from the answer' },
  kv_transfer_params: { isNeutral: never, because: 'the KV cache is not transferred' },
  logprob_token_ids: { isNeutral: never, because: 'use logprobs' },
  vllm_xargs: { isNeutral: never, because: 'extension arguments are not served' },
};

/**
 * @param served - fields of the endpoint; one that is served there is not refused.
 * @throws {MoeError} MOE_REQUEST_UNSUPPORTED naming the field.
 */
export function refuseUnsupported(body: Readonly<Record<string, unknown>>, served: Readonly<Record<string, unknown>>): void {
  for (const [name, { isNeutral, because }] of Object.entries(unsupportedFields)) {
    if (!Object.hasOwn(body, name) || Object.hasOwn(served, name)) continue;
    const value = body[name];
    if (value === null || value === undefined || isNeutral(value, body)) continue;
    throw unsupportedParameter(name, `${name} is not supported: ${because}.`);
  }
  // Only completions echo; vLLM's chat endpoint has the field too.
  if (body.echo === true && !Object.hasOwn(served, 'echo'))
    throw unsupportedParameter('echo', 'echo is supported on /v1/completions only.');
}
