import { requestError } from './errors.js';

/** One prompt of a completion request: text to tokenize, or token ids as they are. */
export type Prompt = string | readonly number[];

/** Prompts of one request. */
const maxPrompts = 1024;

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
  if (prompt.length > maxPrompts) {
    throw requestError(`prompt: expected at most ${String(maxPrompts)} prompts, got ${String(prompt.length)}`, { param: 'prompt' });
  }
  return prompt.map((entry: unknown, index) => {
    const path = `prompt[${String(index)}]`;
    if (typeof entry === 'string') return nonEmpty(entry, path);
    if (Array.isArray(entry) && entry.length > 0) return readTokenIds(entry, path, vocabSize);
    throw requestError(`${path}: expected text or token ids`, { param: path });
  });
}

/** How many sequences a body asks for, before anything in it was checked: admission comes first. */
export function countPrompts(prompt: unknown): number {
  return Array.isArray(prompt) && typeof prompt[0] !== 'number' ? Math.max(1, prompt.length) : 1;
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
