import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { expect } from 'chai';
import fc from 'fast-check';
import { Tokenizer as Library } from 'tokenizers';
import { isMoeError } from '@moe-server/core';
import { fixtureFolder, fixtureFolders, pocketDictionary } from '@moe-server/test-kit';
import type { Tokenizer } from '../../src/text/tokenizer.js';
import { loadTokenizer } from '../../src/text/tokenizer.js';

interface EncodeCase {
  readonly text: string;
  readonly ids: readonly number[];
  readonly decoded: string;
  readonly decoded_skip_special: string;
}

function encodeCases(folder: string): readonly EncodeCase[] {
  const reference = JSON.parse(readFileSync(join(folder, 'reference.json'), 'utf8')) as { tokenizer: { encode: EncodeCase[] } };
  return reference.tokenizer.encode;
}

async function codeAndMessage(action: Promise<unknown>): Promise<[string, string]> {
  try {
    await action;
  } catch (error) {
    if (isMoeError(error)) return [error.code, error.message];
    throw error;
  }
  throw new Error('expected a MoeError');
}

describe('loadTokenizer', () => {
  for (const folder of fixtureFolders()) {
    it(`encodes and decodes as the reference of ${basename(folder)}`, async () => {
      const tokenizer = await loadTokenizer(folder, 640);
      const cases = encodeCases(folder);
      expect(cases).to.not.have.length(0);
      for (const { text, ids, decoded, decoded_skip_special: decodedSkipSpecial } of cases) {
        expect(await tokenizer.encode(text), text).to.deep.equal(ids);
        expect(tokenizer.decode(ids), text).to.equal(decoded);
        expect(tokenizer.decode(ids, { skipSpecialTokens: true }), text).to.equal(decodedSkipSpecial);
      }
    });
  }

  for (const folder of [fixtureFolder('mixtral-bf16'), fixtureFolder('qwen3moe-modelopt-nvfp4'), pocketDictionary]) {
    if (folder === undefined) continue;
    it(`decodes any ids as the tokenizers library does, at once and in pieces, with ${basename(folder)}`, async () => {
      const tokenizer = await loadTokenizer(folder);
      const library = Library.fromFile(join(folder, 'tokenizer.json'));
      // Half of the ids from the range where byte tokens and single characters are, so that broken characters are frequent.
      const id = fc.oneof(fc.integer({ min: 0, max: 260 }), fc.integer({ min: 0, max: tokenizer.vocabSize + 5 }));
      await fc.assert(
        fc.asyncProperty(fc.array(id, { maxLength: 40 }), fc.boolean(), async (ids, skipSpecialTokens) => {
          const expected = await library.decode(ids, skipSpecialTokens);
          expect(tokenizer.decode(ids, { skipSpecialTokens })).to.equal(expected);
          const stream = tokenizer.createStream({ skipSpecialTokens });
          let text = '';
          for (const each of ids) {
            text += stream.push(each);
            expect(expected.startsWith(text)).to.equal(true);
          }
          expect(text + stream.finish()).to.equal(expected);
        }),
        { numRuns: 500, seed: 20261126 },
      );
    });
  }

  describe('of one token', () => {
    let byteLevel: Tokenizer;
    let byteFallback: Tokenizer;
    before(async () => {
      byteLevel = await loadTokenizer(fixtureFolder('qwen3moe-modelopt-nvfp4') ?? '');
      byteFallback = await loadTokenizer(fixtureFolder('mixtral-bf16') ?? '');
    });

    it('gives the bytes, also of a part of a character', async () => {
      const ids = await byteLevel.encode('你');
      expect(ids).to.have.length(3);
      expect(ids.flatMap((id) => [...byteLevel.tokenBytes(id)])).to.deep.equal([...Buffer.from('你')]);
      expect(byteLevel.tokenText(ids[0] ?? -1)).to.equal('\ufffd');
      const [, , ...fallback] = await byteFallback.encode('你');
      expect(fallback.flatMap((id) => [...byteFallback.tokenBytes(id)])).to.deep.equal([...Buffer.from('你')]);
    });

    it('gives the text with its leading space', async () => {
      const ids = await byteFallback.encode('The router', { addSpecialTokens: false });
      expect(ids.map((id) => byteFallback.tokenText(id)).join('')).to.equal(' The router');
    });

    it('gives nothing for an id that no token has', () => {
      expect(byteLevel.tokenText(639)).to.equal('');
      expect(byteLevel.idToToken(-1)).to.equal(undefined);
      expect(byteLevel.tokenToId('no such token')).to.equal(undefined);
    });

    it('knows special tokens and names', () => {
      expect(byteLevel.tokenToId('<|im_end|>')).to.equal(595);
      expect(byteLevel.idToToken(595)).to.equal('<|im_end|>');
      expect([byteLevel.isSpecial(595), byteLevel.isSpecial(596)]).to.deep.equal([true, false]);
      expect(byteLevel.vocabSize).to.equal(600);
    });
  });

  it('leaves special tokens out of a prompt when told to', async () => {
    const tokenizer = await loadTokenizer(fixtureFolder('mixtral-bf16') ?? '');
    expect((await tokenizer.encode('a')).slice(1)).to.deep.equal(await tokenizer.encode('a', { addSpecialTokens: false }));
  });

  it('reads a lone surrogate as U+FFFD', async () => {
    const tokenizer = await loadTokenizer(fixtureFolder('qwen3moe-modelopt-nvfp4') ?? '');
    expect(tokenizer.decode(await tokenizer.encode('a\ud800b'))).to.equal('a\ufffdb');
  });

  describe('of a bad folder', () => {
    let directory: string;
    beforeEach(() => {
      directory = mkdtempSync(join(tmpdir(), 'tokenizer-'));
    });
    afterEach(() => {
      rmSync(directory, { recursive: true });
    });

    const source = (): Record<string, unknown> =>
      JSON.parse(readFileSync(join(fixtureFolder('qwen3moe-modelopt-nvfp4') ?? '', 'tokenizer.json'), 'utf8')) as Record<string, unknown>;
    const files: readonly [string, () => string, string][] = [
      ['is cut short', () => JSON.stringify(source()).slice(0, 2000), 'not valid JSON'],
      ['holds a list', () => '[1]', 'expected a JSON object'],
      ['has no model', () => '{}', 'model.vocab is missing'],
      ['has an unknown model', () => '{"model":{"vocab":{}}}', 'did not match'],
      ['has a negative id', () => '{"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}', '-1 is not a token id'],
      [
        'has an unknown decoder',
        () => JSON.stringify({ ...source(), decoder: { type: 'BPEDecoder', suffix: '</w>' } }),
        'the decoder {"type":"BPEDecoder"',
      ],
      ['merges tokens it does not have', () => '{"model":{"type":"BPE","vocab":{"a":0},"merges":["x y"]}}', 'out of vocabulary'],
    ];
    for (const [what, contents, text] of files) {
      it(`refuses a tokenizer.json that ${what}`, async () => {
        writeFileSync(join(directory, 'tokenizer.json'), contents());
        const [code, message] = await codeAndMessage(loadTokenizer(directory));
        expect(code).to.equal('MOE_CHECKPOINT_TOKENIZER');
        expect(message).to.contain('tokenizer.json').and.to.contain(text);
      });
    }

    it('refuses a folder without one', async () => {
      const [code, message] = await codeAndMessage(loadTokenizer(directory));
      expect(code).to.equal('MOE_CHECKPOINT_TOKENIZER');
      expect(message).to.contain('does not exist');
    });

    it('refuses a tokenizer.json that cannot be read', async () => {
      mkdirSync(join(directory, 'tokenizer.json'));
      const [code, message] = await codeAndMessage(loadTokenizer(directory));
      expect(code).to.equal('MOE_CHECKPOINT_TOKENIZER');
      expect(message).to.contain('cannot read').and.to.contain('tokenizer.json');
    });

    it("refuses ids beyond the model's vocabulary", async () => {
      cpSync(join(fixtureFolder('qwen3moe-modelopt-nvfp4') ?? '', 'tokenizer.json'), join(directory, 'tokenizer.json'));
      const [, message] = await codeAndMessage(loadTokenizer(directory, 599));
      expect(message).to.contain('up to 599').and.to.contain('only 599 tokens');
    });
  });
});
