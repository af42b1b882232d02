import { StopStrings } from './stop-strings.js';
import type { Tokenizer, TokenStream } from './tokenizer.js';

export interface DetokenizerOptions {
  /** Default true. */
  readonly skipSpecialTokens?: boolean;
  /** End the text before any of these; checked by checkStopStrings. */
  readonly stop?: readonly string[];
  /** Keep the stop string at the end of the text. Default false. */
  readonly includeStop?: boolean;
  /** Stop strings do not count in the text of the first so many tokens. */
  readonly minTokens?: number;
}

/** What one more token gives. */
export interface DetokenizedPiece {
  /** Text that may be sent now. It can lag behind the token: half characters and possible stop strings are held back. */
  readonly text: string;
  /** Where the token's own text begins in the whole text, in Unicode code points. */
  readonly offset: number;
  /** The stop string that ended the text. */
  readonly stop: string | undefined;
}

/**
 * Text of one generation, token by token. All pieces and the result of finish() together are what decoding the tokens at once gives, up to
 * a stop string.
 */
export class Detokenizer {
  readonly #stream: TokenStream;
  readonly #stopStrings: StopStrings;
  readonly #includeStop: boolean;
  readonly #minTokens: number;
  #numTokens = 0;
  #numCodePoints = 0;
  #isStopped = false;

  constructor(
    tokenizer: Pick<Tokenizer, 'createStream'>,
    { skipSpecialTokens = true, stop = [], includeStop = false, minTokens = 0 }: DetokenizerOptions = {},
  ) {
    this.#stream = tokenizer.createStream({ skipSpecialTokens });
    this.#stopStrings = new StopStrings(stop);
    this.#includeStop = includeStop;
    this.#minTokens = minTokens;
  }

  /** A stop string was found; further tokens give nothing. */
  get isStopped(): boolean {
    return this.#isStopped;
  }

  push(tokenId: number): DetokenizedPiece {
    const offset = this.#numCodePoints;
    if (this.#isStopped) return { text: '', offset, stop: undefined };
    this.#numTokens++;
    const text = this.#stream.push(tokenId);
    this.#numCodePoints += countCodePoints(text);
    if (this.#numTokens <= this.#minTokens) return { text, offset, stop: undefined };
    return { offset, ...this.#search(text) };
  }

  /** The tokens are over: what was held back. */
  finish(): { readonly text: string; readonly stop: string | undefined } {
    if (this.#isStopped) return { text: '', stop: undefined };
    const rest = this.#search(this.#stream.finish());
    return rest.stop === undefined ? { text: rest.text + this.#stopStrings.finish(), stop: undefined } : rest;
  }

  #search(piece: string): { readonly text: string; readonly stop: string | undefined } {
    const { text, stop } = this.#stopStrings.push(piece);
    if (stop === undefined) return { text, stop };
    this.#isStopped = true;
    return { text: this.#includeStop ? text + stop : text, stop };
  }
}

/** Of well-formed text: every high surrogate begins a pair. */
function countCodePoints(text: string): number {
  let count = text.length;
  for (let i = 0; i < text.length; i++) if ((text.charCodeAt(i) & 0xfc00) === 0xd800) count--;
  return count;
}
