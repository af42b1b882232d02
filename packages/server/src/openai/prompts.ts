import { requestError } from './errors.js';

/** One prompt of a completion request: text to tokenize, or token ids as they are. */
export type Prompt = string | readonly number[];

/** Prompts of one request. */
const maxPrompts = 1024;

/** Prompts times n. Each sequence has state and listeners of its own in this process, so 100,000 would stop it for minutes. */
const maxSequences = 2048;

/**
 * A string, a list of strings, a list of token ids, or a list of lists of token ids; strings and lists of ids may be mixed.
 *
 * @param vocabSize - token ids must be below.
 * @throws {MoeError} MOE_REQUEST_INVALID naming the first entry that is none of these.
 */
export function readPrompts(prompt: unknown, vocabSize: number): Prompt[] {
  if (typeof prompt === 'string') return [nonEmpty(prompt, 'prompt')];
  if (!Array.isArray(prompt) || prompt.length === 0) {
    throw requestError('prompt: expected text, token ids, or a list of either that is not empty', { param: 'prompt' });
  }
  if (typeof prompt[0] === 'number') return [readTokenIds(prompt, 'prompt', vocabSize)];
  return prompt.map((entry: unknown, index) => {
    const path = `prompt[${String(index)}]`;
    if (typeof entry === 'string') return nonEmpty(entry, path);
    if (Array.isArray(entry) && entry.length > 0) return readTokenIds(entry, path, vocabSize);
    throw requestError(`${path}: expected text or token ids`, { param: path });
  });
}

/**
 * How many sequences a body asks for, before the prompts in it were checked: admission comes first.
 *
 * @throws {MoeError} MOE_REQUEST_INVALID when they are more than one request may have: an empty queue lets in any number.
 */
export function countSequences(prompt: unknown, n: number): number {
  const numPrompts = Array.isArray(prompt) && typeof prompt[0] !== 'number' ? Math.max(1, prompt.length) : 1;
  if (numPrompts > maxPrompts) {
    throw requestError(`prompt: expected at most ${String(maxPrompts)} prompts, got ${String(numPrompts)}`, { param: 'prompt' });
  }
  if (numPrompts * n <= maxSequences) return numPrompts * n;
  const message = `n: ${String(numPrompts)} prompts with ${String(n)} sequences each; expected at most ${String(maxSequences)} sequences in one request`;
  throw requestError(message, { param: 'n' });
}

function nonEmpty(text: string, path: string): string {
  if (text === '') throw requestError(`${path}: is empty; a prompt needs at least one token`, { param: path });
  return text;
}

function readTokenIds(ids: readonly unknown[], path: string, vocabSize: number): number[] {
  return ids.map((id, index) => {
    if (typeof id === 'number' && Number.isInteger(id) && id >= 0 && id < vocabSize) return id;
    const at = `${path}[${String(index)}]`;
    const got = typeof id === 'number' ? String(id) : typeof id;
    throw requestError(`${at}: expected a token id from 0 to ${String(vocabSize - 1)}, got ${got}`, { param: at });
  });
}
