import { MoeError } from '@moe-server/core';

/** As OpenAI has it. */
export const maxStopStrings = 4;
const maxStopLength = 1024;

/**
 * Checks the stop strings of a request.
 *
 * @throws {MoeError} MOE_REQUEST_INVALID with `details.param` `stop`.
 */
export function checkStopStrings(stop: readonly string[], maxCount = maxStopStrings): readonly string[] {
  const refuse = (message: string): MoeError => new MoeError('MOE_REQUEST_INVALID', message, { param: 'stop' });
  if (stop.length > maxCount) throw refuse(`stop has ${String(stop.length)} strings; at most ${String(maxCount)} are allowed`);
  for (const text of stop) {
    if (typeof text !== 'string') throw refuse('stop must be a string or a list of strings');
    if (text === '') throw refuse('stop must not contain an empty string');
    if (text.length > maxStopLength) {
      throw refuse(`stop has a string of ${String(text.length)} characters; at most ${String(maxStopLength)} are allowed`);
    }
    if (/\p{Surrogate}/u.test(text)) throw refuse('stop must be valid Unicode; it has half of a surrogate pair');
  }
  return stop;
}

export interface StopResult {
  /** Text that is certainly not part of a stop string. */
  readonly text: string;
  /** The stop string that was found; `text` ends before it, and nothing may follow. */
  readonly stop: string | undefined;
}

/**
 * Looks for stop strings in text that arrives in pieces. The one that is complete first wins, the longest of those that end together, so the
 * result does not depend on how the text is cut into pieces. Held back is only what may still become a stop string (Knuth, Morris, Pratt 1977).
 */
export class StopStrings {
  readonly #matchers: readonly Matcher[];
  #held = '';

  constructor(stop: readonly string[]) {
    this.#matchers = stop.map((text) => ({ text, failure: failureTable(text), matched: 0 }));
  }

  push(piece: string): StopResult {
    if (this.#matchers.length === 0) return { text: piece, stop: undefined };
    const text = this.#held + piece;
    for (let i = this.#held.length; i < text.length; i++) {
      const found = this.#advance(text.charCodeAt(i));
      if (found === undefined) continue;
      this.#held = '';
      return { text: text.slice(0, i + 1 - found.length), stop: found };
    }
    const certain = text.length - this.#matchers.reduce((longest, { matched }) => Math.max(longest, matched), 0);
    this.#held = text.slice(certain);
    return { text: text.slice(0, certain), stop: undefined };
  }

  /** What was held back; from here on the search begins anew. */
  finish(): string {
    const held = this.#held;
    this.#held = '';
    for (const matcher of this.#matchers) matcher.matched = 0;
    return held;
  }

  /** One code unit further; the longest stop string that ends with it. */
  #advance(unit: number): string | undefined {
    let found: string | undefined;
    for (const matcher of this.#matchers) {
      const { text, failure } = matcher;
      while (matcher.matched > 0 && text.charCodeAt(matcher.matched) !== unit) matcher.matched = failure[matcher.matched - 1] ?? 0;
      if (text.charCodeAt(matcher.matched) === unit) matcher.matched++;
      if (matcher.matched === text.length && text.length > (found?.length ?? 0)) found = text;
    }
    return found;
  }
}

interface Matcher {
  readonly text: string;
  /** Per position: length of the longest proper prefix of `text` that ends there. */
  readonly failure: readonly number[];
  matched: number;
}

function failureTable(text: string): number[] {
  const failure = [0];
  let length = 0;
  for (let i = 1; i < text.length; i++) {
    while (length > 0 && text[length] !== text[i]) length = failure[length - 1] ?? 0;
    if (text[length] === text[i]) length++;
    failure.push(length);
  }
  return failure;
}
