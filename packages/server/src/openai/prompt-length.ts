import { MoeError } from '@moe-server/core';

/** No vocabulary in use has a longer token; runs of spaces are the longest, with 128 to 256. */
const maxCharactersPerToken = 512;

/**
 * Refuses a text that cannot fit into the context however it is tokenized, before a minute of work is spent on finding out by how much.
 *
 * @throws {MoeError} MOE_REQUEST_CONTEXT_LENGTH.
 */
export function requirePlausibleLength(text: string, maxModelLen: number, param: string): void {
  if (text.length <= maxModelLen * maxCharactersPerToken) return;
  const message = `The prompt has ${String(text.length)} characters; the context of this model is ${String(maxModelLen)} tokens, which cannot hold them.`;
  throw new MoeError('MOE_REQUEST_CONTEXT_LENGTH', message, { param, maxModelLen });
}
