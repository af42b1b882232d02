import { MoeError } from '@moe-server/core';

/**
 * Turns tokens into text one by one. Text that a later token could still change (half a character, a run of byte tokens) is held back, so the
 * pieces together are exactly what decoding all tokens at once gives.
 */
export interface TokenDecoder {
  /** Text that is certain now. */
  readonly push: (token: string) => string;
  /** The rest; the decoder must not be used any more. */
  readonly finish: () => string;
}

/** One step of a decoder: pieces in, pieces out. */
interface Stage {
  readonly push: (piece: string) => readonly string[];
  readonly finish: () => readonly string[];
}

/** A decoder that a tokenizer.json describes, ready to be begun any number of times. */
export interface TokenDecoderSpec {
  readonly create: () => TokenDecoder;
  /** The bytes that one token stands for when looked at alone. */
  readonly bytesOf: (token: string) => Uint8Array;
}

/**
 * Reads the `decoder` of a tokenizer.json: ByteLevel, and Sequences of Replace, ByteFallback, Fuse, Strip, Metaspace and ByteLevel, which are
 * what language models use. The meaning of each is that of the tokenizers library; tests compare with it.
 *
 * @throws {MoeError} MOE_CHECKPOINT_TOKENIZER naming a decoder that is not one of these.
 */
export function readTokenDecoder(decoder: unknown): TokenDecoderSpec {
  const parts = flatten(decoder);
  const stages: StageSpec[] = [];
  let isFused = false;
  for (const part of parts) {
    const stage = readStage(part, isFused);
    if (stage === undefined) isFused = true;
    else stages.push(stage);
    if (stage?.fuses === true) isFused = true;
  }
  if (parts.length === 0) stages.push(joinWithSpaces);
  return {
    create: () => new StagedDecoder(stages.map(({ create }) => create())),
    bytesOf: (token) => {
      let text = token;
      for (const { bytesOf, mapAlone } of stages) {
        const bytes = bytesOf?.(text);
        if (bytes !== undefined) return bytes;
        text = mapAlone?.(text) ?? text;
      }
      return encodeUtf8(text);
    },
  };
}

interface StageSpec {
  readonly create: () => Stage;
  /** After this, pieces are parts of one text and no longer tokens. */
  readonly fuses?: boolean;
  /** What the stage does to a token that stands alone. */
  readonly mapAlone?: (token: string) => string;
  readonly bytesOf?: (token: string) => Uint8Array | undefined;
}

class StagedDecoder implements TokenDecoder {
  readonly #stages: readonly Stage[];

  constructor(stages: readonly Stage[]) {
    this.#stages = stages;
  }

  push(token: string): string {
    return this.#run(0, [token]).join('');
  }

  finish(): string {
    let text = '';
    for (const [i, stage] of this.#stages.entries()) text += this.#run(i + 1, stage.finish()).join('');
    return text;
  }

  #run(firstStage: number, pieces: readonly string[]): readonly string[] {
    for (let i = firstStage; i < this.#stages.length && pieces.length > 0; i++) {
      const stage = this.#stages[i];
      if (stage !== undefined) pieces = pieces.flatMap((piece) => stage.push(piece));
    }
    return pieces;
  }
}

type JsonObject = Readonly<Record<string, unknown>>;

function flatten(decoder: unknown): JsonObject[] {
  if (decoder === null || decoder === undefined) return [];
  if (typeof decoder !== 'object') throw unsupported(decoder);
  const part = decoder as JsonObject;
  if (part.type !== 'Sequence') return [part];
  if (!Array.isArray(part.decoders)) throw unsupported(part);
  return part.decoders.flatMap(flatten);
}

/** Undefined for Fuse, which only says that what follows sees one text. */
function readStage(part: JsonObject, isFused: boolean): StageSpec | undefined {
  switch (part.type) {
    case 'ByteLevel':
      return byteLevel;
    case 'ByteFallback':
      return byteFallback;
    case 'Fuse':
      return undefined;
    case 'Replace':
      return readReplace(part, isFused);
    case 'Strip':
      return readStrip(part, isFused);
    case 'Metaspace':
      return readMetaspace(part);
    default:
      throw unsupported(part);
  }
}

function unsupported(part: unknown): MoeError {
  const shown = JSON.stringify(part).slice(0, 200);
  const message =
    `tokenizer.json: the decoder ${shown} is not supported; supported are ByteLevel and Sequence of Replace (of a string), ByteFallback, ` +
    'Fuse, Strip, Metaspace and ByteLevel';
  return new MoeError('MOE_CHECKPOINT_TOKENIZER', message, { file: 'tokenizer.json', decoder: shown });
}

/** A stage without memory. */
function mapping(map: (piece: string) => string): StageSpec {
  const stage: Stage = { push: (piece) => [map(piece)], finish: () => [] };
  return { create: () => stage, mapAlone: map };
}

function readReplace(part: JsonObject, isFused: boolean): StageSpec {
  const { pattern, content } = part as { pattern?: { String?: unknown } | null; content?: unknown };
  const from = pattern?.String;
  if (typeof from !== 'string' || from === '' || typeof content !== 'string') throw unsupported(part);
  // In one text a longer pattern could begin in one piece and end in the next.
  if (isFused && from.length > 1) throw unsupported(part);
  return mapping((piece) => piece.replaceAll(from, content));
}

/** Removes up to `start` and `stop` times one character from the ends: of the whole text once it is fused, else of every token. */
function readStrip(part: JsonObject, isFused: boolean): StageSpec {
  const { content, start, stop } = part;
  if (typeof content !== 'string' || content.length !== 1 || typeof start !== 'number' || typeof stop !== 'number') throw unsupported(part);
  if (!isFused) return mapping((token) => stripEnd(stripStart(token, content, start), content, stop));
  return { create: () => new StripText(content, start, stop) };
}

function stripStart(text: string, content: string, most: number): string {
  let count = 0;
  while (count < most && text[count] === content) count++;
  return text.slice(count);
}

function stripEnd(text: string, content: string, most: number): string {
  let end = text.length;
  while (text.length - end < most && end > 0 && text[end - 1] === content) end--;
  return text.slice(0, end);
}

class StripText implements Stage {
  readonly #content: string;
  readonly #stop: number;
  /** How many may still be removed from the beginning. */
  #start: number;
  /** The end of the text so far, as long as it may have to go. */
  #held = '';

  constructor(content: string, start: number, stop: number) {
    this.#content = content;
    this.#start = start;
    this.#stop = stop;
  }

  push(piece: string): readonly string[] {
    const rest = stripStart(piece, this.#content, this.#start);
    this.#start = rest === '' ? this.#start - piece.length : 0;
    const text = this.#held + rest;
    const certain = stripEnd(text, this.#content, this.#stop);
    this.#held = text.slice(certain.length);
    return certain === '' ? [] : [certain];
  }

  finish(): readonly string[] {
    return [];
  }
}

function readMetaspace(part: JsonObject): StageSpec {
  const { replacement } = part;
  if (typeof replacement !== 'string') throw unsupported(part);
  const isPrefixed = part.prepend_scheme === undefined ? part.add_prefix_space !== false : part.prepend_scheme !== 'never';
  return {
    mapAlone: (token) => token.replaceAll(replacement, ' '),
    create: () => {
      let isFirst = true;
      return {
        push: (token) => {
          const space = isFirst && isPrefixed ? '' : ' ';
          isFirst = false;
          return [token.replaceAll(replacement, space)];
        },
        finish: () => [],
      };
    },
  };
}

/** Without a decoder the library puts a space between tokens. */
const joinWithSpaces: StageSpec = {
  create: () => {
    let isFirst = true;
    return {
      push: (token) => {
        const piece = isFirst ? token : ` ${token}`;
        isFirst = false;
        return [piece];
      },
      finish: () => [],
    };
  },
};

/**
 * Byte-level BPE (Radford et al. 2019) writes every byte as one printable character: the printable ones of Latin-1 as themselves, the others,
 * in rising order, from U+0100 on.
 */
const byteOfCharacter: ReadonlyMap<string, number> = (() => {
  const bytes = new Map<string, number>();
  let next = 0x100;
  for (let byte = 0; byte < 256; byte++) {
    const isPrintable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    bytes.set(String.fromCodePoint(isPrintable ? byte : next++), byte);
  }
  return bytes;
})();

const utf8Encoder = new TextEncoder();

function encodeUtf8(text: string): Uint8Array {
  return utf8Encoder.encode(text);
}

/** A token with a character outside the alphabet is an added token and stands for itself. */
function byteLevelBytes(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = byteOfCharacter.get(token.charAt(i));
    if (byte === undefined) return encodeUtf8(token);
    bytes[i] = byte;
  }
  return bytes;
}

const byteLevel: StageSpec = {
  fuses: true,
  bytesOf: byteLevelBytes,
  create: () => {
    const utf8 = new TextDecoder('utf-8', { ignoreBOM: true });
    const pieces = (text: string): readonly string[] => (text === '' ? [] : [text]);
    return {
      push: (token) => pieces(utf8.decode(byteLevelBytes(token), { stream: true })),
      finish: () => pieces(utf8.decode()),
    };
  },
};

const byteToken = /^<0x([0-9A-Fa-f]{2})>$/;

/** A run of `<0xNN>` tokens is text when the whole run is valid UTF-8, else one U+FFFD for each: so a run is certain only when it is over. */
class ByteFallback implements Stage {
  #run: number[] = [];

  push(token: string): readonly string[] {
    const byte = byteToken.exec(token)?.[1];
    if (byte === undefined) return [...this.finish(), token];
    this.#run.push(parseInt(byte, 16));
    return [];
  }

  finish(): readonly string[] {
    if (this.#run.length === 0) return [];
    const run = Uint8Array.from(this.#run);
    this.#run = [];
    try {
      return [new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(run)];
    } catch {
      return ['\ufffd'.repeat(run.length)];
    }
  }
}

const byteFallback: StageSpec = {
  create: () => new ByteFallback(),
  bytesOf: (token) => {
    const byte = byteToken.exec(token)?.[1];
    return byte === undefined ? undefined : Uint8Array.of(parseInt(byte, 16));
  },
};
