import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { messageOf, MoeError } from '@moe-server/core';
import { readJsonFile, readTextFile } from './json-file.js';

/** One message of a chat as the template sees it: `role`, `content`, and what else the client sent. Plain JSON. */
export type ChatMessage = Readonly<Record<string, unknown>>;

export interface RenderOptions {
  /** Default true: end with the beginning of the assistant's turn. */
  readonly addGenerationPrompt?: boolean;
  /** `chat_template_kwargs` of the request. */
  readonly kwargs?: Readonly<Record<string, unknown>>;
}

export interface RenderBudget {
  readonly milliseconds: number;
  readonly megabytes: number;
}

/** To the worker: what to build. */
export interface WorkerData {
  readonly template: string;
}

/** To the worker: one rendering. */
export interface WorkerRequest {
  readonly variables: Record<string, unknown>;
}

export type WorkerReply =
  /** The template is understood; it mentions these names. */
  | { readonly type: 'ready'; readonly names: readonly string[] }
  | { readonly type: 'invalid'; readonly message: string }
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: 'refused'; readonly message: string };

const defaultBudget: RenderBudget = { milliseconds: 2000, megabytes: 64 };
/** To start a thread and parse a template, on a machine with much else to do. */
const startMilliseconds = 30_000;

/** Set by us or by the template language; a request must not change them. */
const reservedNames: ReadonlySet<string> = new Set([
  ...['messages', 'tools', 'documents', 'chat_template', 'tokenize', 'add_generation_prompt', 'continue_final_message', 'return_dict'],
  ...['bos_token', 'eos_token', 'unk_token', 'pad_token', 'sep_token', 'cls_token', 'mask_token', 'additional_special_tokens'],
  ...['raise_exception', 'range', 'namespace', 'strftime_now', 'loop', 'true', 'false', 'none', 'True', 'False', 'None'],
  ...['__proto__', 'constructor', 'prototype'],
]);

/**
 * The chat template of one model, from chat_template.jinja or tokenizer_config.json.
 *
 * A template is a program that came with the weights and runs on what strangers send, and the template language knows no bounds: a loop can eat all
 * memory or the event loop. So it runs in a worker thread with a heap limit and a deadline; one that breaks them is ended, that request
 * fails, and the next one gets a new thread. Renderings queue; one takes about 0.1 ms.
 */
export class ChatTemplate {
  readonly #source: string | undefined;
  readonly #specialTokens: Readonly<Record<string, unknown>>;
  readonly #budget: RenderBudget;
  #worker: Promise<RenderWorker> | undefined;
  /** The end of the queue. */
  #last: Promise<unknown> = Promise.resolve();

  private constructor(source: string | undefined, specialTokens: Readonly<Record<string, unknown>>, budget: RenderBudget) {
    this.#source = source;
    this.#specialTokens = specialTokens;
    this.#budget = budget;
  }

  /**
   * Reads a model folder and starts the thread. A model without a template opens too; it refuses to render.
   *
   * @throws {MoeError} MOE_CHECKPOINT_TEMPLATE naming the file when the template cannot be read or understood.
   */
  static async open(directory: string, budget: RenderBudget = defaultBudget): Promise<ChatTemplate> {
    const config = (await readJsonFile(directory, 'tokenizer_config.json', 'MOE_CHECKPOINT_TEMPLATE')) ?? {};
    const own = await readTextFile(directory, 'chat_template.jinja', 'MOE_CHECKPOINT_TEMPLATE');
    const file = own === undefined ? 'tokenizer_config.json' : 'chat_template.jinja';
    const template = new ChatTemplate(own ?? readTemplate(config.chat_template, directory), readSpecialTokens(config), budget);
    if (!template.isPresent) return template;
    try {
      await template.#start();
    } catch (error) {
      const message = `${join(directory, file)}: the chat template cannot be used: ${messageOf(error)}`;
      throw new MoeError('MOE_CHECKPOINT_TEMPLATE', message, { file }, { cause: error });
    }
    return template;
  }

  /** The model has a template. */
  get isPresent(): boolean {
    return this.#source !== undefined;
  }

  /**
   * The prompt for a chat. Encode it without adding special tokens.
   *
   * @throws {MoeError} MOE_REQUEST_INVALID with the template's own words where it refuses the messages, and when it exceeds its budget;
   *   MOE_REQUEST_UNSUPPORTED when the model has no template.
   */
  async render(messages: readonly ChatMessage[], { addGenerationPrompt = true, kwargs = {} }: RenderOptions = {}): Promise<string> {
    if (!this.isPresent) {
      const message = 'this model has no chat template; send the text to continue to /v1/completions instead';
      throw new MoeError('MOE_REQUEST_UNSUPPORTED', message, { param: 'messages' });
    }
    for (const name of Object.keys(kwargs)) {
      if (!reservedNames.has(name)) continue;
      const param = `chat_template_kwargs.${name}`;
      throw new MoeError('MOE_REQUEST_INVALID', `chat_template_kwargs must not set ${JSON.stringify(name)}`, { param });
    }
    const variables = { ...this.#specialTokens, messages, tools: null, documents: null, add_generation_prompt: addGenerationPrompt };
    const rendering = this.#last.then(async () => await this.#render(variables, kwargs));
    this.#last = rendering.catch(() => undefined);
    return await rendering;
  }

  /** Ends the thread once what is queued is done. */
  async close(): Promise<void> {
    await this.#last;
    const worker = await this.#worker?.catch(() => undefined);
    this.#worker = undefined;
    await worker?.terminate();
  }

  async #render(variables: Readonly<Record<string, unknown>>, kwargs: Readonly<Record<string, unknown>>): Promise<string> {
    const worker = await this.#start();
    // Names that the template does not know are dropped: clients send the same ones to every model.
    const known = Object.entries(kwargs).filter(([name]) => worker.names.has(name));
    const { milliseconds, megabytes } = this.#budget;
    let reply: WorkerReply;
    try {
      reply = await worker.ask({ variables: { ...Object.fromEntries(known), ...variables } }, milliseconds);
    } catch (error) {
      this.#worker = undefined;
      await worker.terminate();
      const limits = `${String(milliseconds)} ms and ${String(megabytes)} MB`;
      const message = `the model's chat template could not render these messages within ${limits}: ${messageOf(error)}`;
      throw new MoeError('MOE_REQUEST_INVALID', message, { param: 'messages' }, { cause: error });
    }
    if (reply.type === 'text') return reply.text;
    const reason = reply.type === 'refused' ? reply.message : reply.type;
    throw new MoeError('MOE_REQUEST_INVALID', `the model's chat template refuses these messages: ${reason}`, { param: 'messages' });
  }

  async #start(): Promise<RenderWorker> {
    if (this.#source === undefined) return await Promise.reject(new Error('there is no chat template'));
    this.#worker ??= RenderWorker.start(this.#source, this.#budget.megabytes);
    return await this.#worker;
  }
}

/** One thread; used by one rendering at a time. */
class RenderWorker {
  readonly names: ReadonlySet<string>;
  readonly #thread: Worker;

  private constructor(thread: Worker, names: readonly string[]) {
    this.#thread = thread;
    this.names = new Set(names);
  }

  static async start(template: string, megabytes: number): Promise<RenderWorker> {
    const data: WorkerData = { template };
    const thread = new Worker(new URL('./chat-template-worker.js', import.meta.url), {
      workerData: data,
      resourceLimits: { maxOldGenerationSizeMb: megabytes, maxYoungGenerationSizeMb: Math.ceil(megabytes / 4), stackSizeMb: 2 },
      execArgv: [],
    });
    // Every failure is noticed by who waits for an answer; without a listener, one that comes later would end the process.
    thread.on('error', () => undefined);
    try {
      const reply = await nextReply(thread, startMilliseconds);
      if (reply.type === 'ready') return new RenderWorker(thread, reply.names);
      throw new Error(reply.type === 'invalid' ? reply.message : `unexpected reply ${reply.type}`);
    } catch (error) {
      await thread.terminate();
      throw error;
    }
  }

  async ask(request: WorkerRequest, milliseconds: number): Promise<WorkerReply> {
    this.#thread.postMessage(request);
    return await nextReply(this.#thread, milliseconds);
  }

  async terminate(): Promise<void> {
    await this.#thread.terminate();
  }
}

/** Waits for one message; the thread keeps the process alive only for so long. */
async function nextReply(thread: Worker, milliseconds: number): Promise<WorkerReply> {
  thread.ref();
  try {
    return await new Promise<WorkerReply>((resolve, reject) => {
      const timer = setTimeout(() => {
        settle(() => {
          reject(new Error(`no answer after ${String(milliseconds)} ms`));
        });
      }, milliseconds);
      const settle = (how: () => void): void => {
        clearTimeout(timer);
        thread.off('message', onMessage).off('error', onError).off('exit', onExit);
        how();
      };
      const onMessage = (reply: WorkerReply): void => {
        settle(() => {
          resolve(reply);
        });
      };
      const onError = (error: Error): void => {
        settle(() => {
          reject(error);
        });
      };
      const onExit = (): void => {
        settle(() => {
          reject(new Error('the thread ended'));
        });
      };
      thread.on('message', onMessage).on('error', onError).on('exit', onExit);
    });
  } finally {
    thread.unref();
  }
}

/** A string, or a list of named ones of which `default` is meant. */
function readTemplate(value: unknown, directory: string): string | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value === 'string') return value;
  const named = Array.isArray(value) ? (value as unknown[]) : [];
  for (const entry of named) {
    const { name, template } = (entry ?? {}) as { name?: unknown; template?: unknown };
    if (name === 'default' && typeof template === 'string') return template;
  }
  const message = `${join(directory, 'tokenizer_config.json')}: chat_template must be a string, or a list with an entry named "default"`;
  throw new MoeError('MOE_CHECKPOINT_TEMPLATE', message, { file: 'tokenizer_config.json' });
}

/** Those that the file names; templates test whether the others are defined. */
function readSpecialTokens(config: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const tokens: Record<string, unknown> = {};
  for (const name of ['bos_token', 'eos_token', 'unk_token', 'pad_token', 'sep_token', 'cls_token', 'mask_token']) {
    const value = config[name];
    const text = typeof value === 'object' && value !== null ? (value as { content?: unknown }).content : value;
    if (typeof text === 'string') tokens[name] = text;
  }
  if (Array.isArray(config.additional_special_tokens)) tokens.additional_special_tokens = config.additional_special_tokens;
  return tokens;
}
