import { expect } from 'chai';
import { Tokenizer as Library } from 'tokenizers';
import fc from 'fast-check';
import { readTokenDecoder } from '../../src/text/token-decoder.js';

const vocabulary = ['▁a', 'b', '▁', '▁▁', ' ', 'x ', ' y', '<0xE4>', '<0xBD>', '<0xA0>', '<0x41>', 'Ġthe', 'é', '你'];

/** The library, with that decoder over a vocabulary of single tokens. */
function library(decoder: unknown): Library {
  const vocab = Object.fromEntries(vocabulary.map((token, id) => [token, id]));
  return Library.fromString(JSON.stringify({ version: '1.0', added_tokens: [], decoder, model: { type: 'BPE', vocab, merges: [] } }));
}

function decode(decoder: unknown, tokens: readonly string[]): string {
  const stream = readTokenDecoder(decoder).create();
  return tokens.map((token) => stream.push(token)).join('') + stream.finish();
}

describe('readTokenDecoder', () => {
  const replace = { type: 'Replace', pattern: { String: '▁' }, content: ' ' };
  const strip = (start: number, stop: number): unknown => ({ type: 'Strip', content: ' ', start, stop });
  const sequence = (...decoders: readonly unknown[]): unknown => ({ type: 'Sequence', decoders });
  const decoders: readonly [string, unknown][] = [
    ['no decoder', null],
    ['ByteLevel', { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true }],
    ['what Llama and Mixtral have', sequence(replace, { type: 'ByteFallback' }, { type: 'Fuse' }, strip(1, 0))],
    ['Strip of every token', sequence(replace, strip(1, 0))],
    ['what Gemma has', sequence(replace, { type: 'ByteFallback' }, { type: 'Fuse' })],
    ['Metaspace', { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true }],
    ['Metaspace without a prefix', { type: 'Metaspace', replacement: '▁', prepend_scheme: 'never', split: true }],
    ['nested sequences', sequence(sequence(replace), { type: 'ByteFallback' })],
  ];
  for (const [name, decoder] of decoders) {
    it(`decodes as the library does: ${name}`, async () => {
      const reference = library(decoder);
      await fc.assert(
        fc.asyncProperty(fc.array(fc.nat(vocabulary.length - 1), { maxLength: 12 }), async (ids) => {
          const tokens = ids.map((id) => vocabulary[id] ?? '');
          expect(decode(decoder, tokens)).to.equal(await reference.decode(ids, false));
        }),
        { numRuns: 200, seed: 20261126 },
      );
    });
  }

  // Not compared: the library ends the process where a token is shorter than what Strip may take from its end.
  it('strips both ends of the text or of every token', () => {
    const tokens = [' ', '  a', 'b ', ' ', ' ', ' c ', '  '];
    expect(decode(sequence({ type: 'Fuse' }, strip(2, 1)), tokens)).to.equal(' ab    c  ');
    expect(decode(strip(1, 1), tokens)).to.equal(' abc');
    expect(decode(sequence({ type: 'Fuse' }, strip(0, 9)), tokens)).to.equal('   ab    c');
  });

  it('gives a character as soon as its last byte is there', () => {
    const stream = readTokenDecoder({ type: 'ByteLevel' }).create();
    expect(['ä', '½', 'ł', 'a'].map((token) => stream.push(token))).to.deep.equal(['', '', '你', 'a']);
  });

  it('holds a run of byte tokens back until it is over', () => {
    const stream = readTokenDecoder({ type: 'ByteFallback' }).create();
    expect(['<0xE4>', '<0xBD>', '<0xA0>', 'a'].map((token) => stream.push(token))).to.deep.equal(['', '', '', '你a']);
  });

  it('replaces what never became a character', () => {
    expect(decode({ type: 'ByteLevel' }, ['ä', '½'])).to.equal('\ufffd');
    expect(decode({ type: 'ByteFallback' }, ['<0xE4>', '<0xBD>'])).to.equal('\ufffd\ufffd');
  });

  for (const decoder of [
    { type: 'WordPiece' },
    { type: 'Replace', pattern: { Regex: 'a' }, content: '' },
    sequence({ type: 'Fuse' }, { type: 'Replace', pattern: { String: 'ab' }, content: '' }),
    { type: 'Strip', content: ' ' },
    { type: 'Sequence' },
    { type: 'Metaspace' },
    7,
  ]) {
    it(`refuses ${JSON.stringify(decoder)}`, () => {
      expect(() => readTokenDecoder(decoder))
        .to.throw('is not supported')
        .with.property('code', 'MOE_CHECKPOINT_TOKENIZER');
    });
  }
});
