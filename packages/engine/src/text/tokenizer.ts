import { join } from 'node:path';
import { messageOf, MoeError } from '@moe-server/core';
import type { Tokenizer as NativeTokenizer } from 'tokenizers';
import { parseJsonObject, readTextFile } from './json-file.js';
import type { TokenDecoder, TokenDecoderSpec } from './token-decoder.js';
import { readTokenDecoder } from './token-decoder.js';

/** Text to token ids and back, as a model's tokenizer.json says. */
export interface Tokenizer {
  /** One more than the highest token id. */
  readonly vocabSize: number;
  /**
   * Runs off the event loop. Lone surrogates are read as U+FFFD.
   *
   * @param options.addSpecialTokens - put the model's begin and end tokens around the text, as its post-processor says. Default true;
   *   false for a rendered chat template, which has them already.
   */
  readonly encode: (text: string, options?: { readonly addSpecialTokens?: boolean }) => Promise<number[]>;
  /** Ids that no token has give no text. Half characters become U+FFFD. */
  readonly decode: (tokenIds: readonly number[], options?: DecodeOptions) => string;
  /** The same, token by token. */
  readonly createStream: (options?: DecodeOptions) => TokenStream;
  /** As it stands in the vocabulary: `Ġthe`, `▁the`, `<0x0A>`. */
  readonly idToToken: (tokenId: number) => string | undefined;
  readonly tokenToId: (token: string) => number | undefined;
  readonly isSpecial: (tokenId: number) => boolean;
  /** The bytes one token stands for, possibly only a part of a character. */
  readonly tokenBytes: (tokenId: number) => Uint8Array;
  /** Those bytes as text of their own, U+FFFD for what is no whole character. */
  readonly tokenText: (tokenId: number) => string;
}

export interface DecodeOptions {
  /** Leave special tokens out. Default false. */
  readonly skipSpecialTokens?: boolean;
}

export interface TokenStream {
  /** Text that no later token can change. */
  readonly push: (tokenId: number) => string;
  /** The rest. */
  readonly finish: () => string;
}

/**
 * Loads a model folder's tokenizer.json.
 *
 * @param modelVocabSize - rows of the model's embedding, where known: the tokenizer must not have ids beyond.
 * @throws {MoeError} MOE_CHECKPOINT_TOKENIZER naming the file and what is wrong.
 */
export async function loadTokenizer(directory: string, modelVocabSize?: number): Promise<Tokenizer> {
  const path = join(directory, 'tokenizer.json');
  const text = await readTextFile(directory, 'tokenizer.json', 'MOE_CHECKPOINT_TOKENIZER');
  if (text === undefined) {
    const message = `${path} does not exist; the model's tokenizer must lie in its folder in this format`;
    throw new MoeError('MOE_CHECKPOINT_TOKENIZER', message, { file: 'tokenizer.json' });
  }
  const file = parseJsonObject(text, path, 'MOE_CHECKPOINT_TOKENIZER');
  const { specialIds, vocabSize } = readVocabulary(file, path);
  if (modelVocabSize !== undefined && vocabSize > modelVocabSize) {
    const message = `${path} has token ids up to ${String(vocabSize - 1)}, but the model has only ${String(modelVocabSize)} tokens; do both belong together?`;
    throw new MoeError('MOE_CHECKPOINT_TOKENIZER', message, { file: 'tokenizer.json', vocabSize, modelVocabSize });
  }
  // Only here, so that importing this module loads no native code.
  const library = await import('tokenizers');
  let native: NativeTokenizer;
  try {
    native = library.Tokenizer.fromString(text);
    // Some files still carry what the tokenizer was trained with; a prompt is never cut or filled up.
    native.disableTruncation();
    native.disablePadding();
  } catch (error) {
    throw new MoeError('MOE_CHECKPOINT_TOKENIZER', `${path}: ${messageOf(error)}`, { file: 'tokenizer.json' }, { cause: error });
  }
  return new LoadedTokenizer(native, readTokenDecoder(file.decoder), specialIds, vocabSize);
}

class LoadedTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly #native: NativeTokenizer;
  readonly #decoder: TokenDecoderSpec;
  readonly #specialIds: ReadonlySet<number>;
  /** Filled on first use; a call into the library per token would cost more than all the rest. */
  readonly #tokens: (string | undefined)[] = [];

  constructor(native: NativeTokenizer, decoder: TokenDecoderSpec, specialIds: ReadonlySet<number>, vocabSize: number) {
    this.vocabSize = vocabSize;
    this.#native = native;
    this.#decoder = decoder;
    this.#specialIds = specialIds;
  }

  async encode(text: string, { addSpecialTokens = true }: { readonly addSpecialTokens?: boolean } = {}): Promise<number[]> {
    const encoding = await this.#native.encode(text, null, { addSpecialTokens });
    return encoding.getIds();
  }

  decode(tokenIds: readonly number[], options: DecodeOptions = {}): string {
    const stream = this.createStream(options);
    let text = '';
    for (const tokenId of tokenIds) text += stream.push(tokenId);
    return text + stream.finish();
  }

  createStream({ skipSpecialTokens = false }: DecodeOptions = {}): TokenStream {
    const decoder: TokenDecoder = this.#decoder.create();
    return {
      push: (tokenId) => {
        const token = skipSpecialTokens && this.isSpecial(tokenId) ? undefined : this.idToToken(tokenId);
        return token === undefined ? '' : decoder.push(token);
      },
      finish: () => decoder.finish(),
    };
  }

  idToToken(tokenId: number): string | undefined {
    if (!Number.isInteger(tokenId) || tokenId < 0 || tokenId >= this.vocabSize) return undefined;
    return (this.#tokens[tokenId] ??= this.#native.idToToken(tokenId) ?? undefined);
  }

  tokenToId(token: string): number | undefined {
    return this.#native.tokenToId(token) ?? undefined;
  }

  isSpecial(tokenId: number): boolean {
    return this.#specialIds.has(tokenId);
  }

  tokenBytes(tokenId: number): Uint8Array {
    const token = this.idToToken(tokenId);
    return token === undefined ? new Uint8Array(0) : this.#decoder.bytesOf(token);
  }

  tokenText(tokenId: number): string {
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(this.tokenBytes(tokenId));
  }
}

/** Special ids and the highest id. What else the file says is the library's to check. */
function readVocabulary(file: Readonly<Record<string, unknown>>, path: string): { specialIds: Set<number>; vocabSize: number } {
  const specialIds = new Set<number>();
  let highest = -1;
  const count = (tokenId: unknown): void => {
    if (typeof tokenId !== 'number' || !Number.isInteger(tokenId) || tokenId < 0 || tokenId >= 2 ** 31) {
      throw new MoeError('MOE_CHECKPOINT_TOKENIZER', `${path}: ${String(tokenId)} is not a token id`, { file: 'tokenizer.json' });
    }
    highest = Math.max(highest, tokenId);
  };
  const { model, added_tokens: addedTokens } = file as { model?: { vocab?: unknown } | null; added_tokens?: unknown };
  const vocab = model?.vocab;
  if (Array.isArray(vocab)) count(Math.max(vocab.length - 1, 0));
  else if (typeof vocab === 'object' && vocab !== null) for (const tokenId of Object.values(vocab)) count(tokenId);
  else throw new MoeError('MOE_CHECKPOINT_TOKENIZER', `${path}: model.vocab is missing`, { file: 'tokenizer.json' });
  for (const added of Array.isArray(addedTokens) ? (addedTokens as unknown[]) : []) {
    const { id, special } = (added ?? {}) as { id?: unknown; special?: unknown };
    count(id);
    if (special === true) specialIds.add(id as number);
  }
  return { specialIds, vocabSize: highest + 1 };
}
