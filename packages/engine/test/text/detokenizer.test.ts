import { expect } from 'chai';
import fc from 'fast-check';
import { fixtureFolder } from '@moe-server/test-kit';
import { Detokenizer } from '../../src/text/detokenizer.js';
import type { DetokenizerOptions } from '../../src/text/detokenizer.js';
import type { Tokenizer } from '../../src/text/tokenizer.js';
import { loadTokenizer } from '../../src/text/tokenizer.js';

describe('Detokenizer', () => {
  let tokenizer: Tokenizer;
  before(async () => {
    tokenizer = await loadTokenizer(fixtureFolder('qwen3moe-modelopt-nvfp4') ?? '');
  });

  async function run(
    text: string,
    options: DetokenizerOptions = {},
  ): Promise<{ text: string; stop: string | undefined; pieces: string[] }> {
    const detokenizer = new Detokenizer(tokenizer, options);
    const pieces = [];
    let stop: string | undefined;
    for (const id of await tokenizer.encode(text)) {
      const piece = detokenizer.push(id);
      pieces.push(piece.text);
      stop ??= piece.stop;
    }
    const rest = detokenizer.finish();
    return { text: pieces.join('') + rest.text, stop: stop ?? rest.stop, pieces };
  }

  it('gives the text in pieces, whole characters only', async () => {
    const { text, pieces } = await run('😀 👍🏽 你好');
    expect(text).to.equal('😀 👍🏽 你好');
    expect(pieces.some((piece) => piece === '')).to.equal(true);
    expect(pieces.join('')).to.not.contain('\ufffd');
  });

  it('skips special tokens unless told not to', async () => {
    expect((await run('<|im_start|>hi<|im_end|>')).text).to.equal('hi');
    expect((await run('<|im_start|>hi<|im_end|>', { skipSpecialTokens: false })).text).to.equal('<|im_start|>hi<|im_end|>');
  });

  it('ends the text before a stop string and ignores further tokens', async () => {
    const { text, stop } = await run('The router selects four tensors in order.', { stop: ['ur tens', 'zzz'] });
    expect(text).to.equal('The router selects fo');
    expect(stop).to.equal('ur tens');
  });

  it('keeps the stop string when told to', async () => {
    expect((await run('The router selects', { stop: ['ter'], includeStop: true })).text).to.equal('The router');
  });

  it('does not look for stop strings in the first minTokens tokens', async () => {
    const { text } = await run('aaaa', { stop: ['a'], minTokens: 2 });
    expect(text).to.equal('aa');
  });

  it('gives a stop string that was never finished', async () => {
    expect((await run('The rou', { stop: ['router'] })).text).to.equal('The rou');
  });

  it('finds a stop string that only the end of the text completes', () => {
    const detokenizer = new Detokenizer(tokenizer, { stop: ['\ufffd'] });
    expect(detokenizer.push(160).text).to.equal('');
    expect(detokenizer.finish()).to.deep.equal({ text: '', stop: '\ufffd' });
    expect(detokenizer.isStopped).to.equal(true);
    expect(detokenizer.finish()).to.deep.equal({ text: '', stop: undefined });
  });

  it('tells where each token begins, in code points', async () => {
    const detokenizer = new Detokenizer(tokenizer);
    const text = 'a😀bc';
    const offsets = (await tokenizer.encode(text)).map((id) => detokenizer.push(id).offset);
    expect(offsets[0]).to.equal(0);
    expect(offsets[1]).to.equal(1);
    expect(offsets.at(-1)).to.equal(3);
    expect([...offsets].sort((a, b) => a - b)).to.deep.equal(offsets);
  });

  it('gives together what decoding at once gives, for any ids', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(639), { maxLength: 60 }), fc.boolean(), (ids, skipSpecialTokens) => {
        const detokenizer = new Detokenizer(tokenizer, { skipSpecialTokens, stop: ['never in there: \u0000\u0001\u0002'] });
        const pieces = ids.map((id) => detokenizer.push(id).text);
        expect(pieces.join('') + detokenizer.finish().text).to.equal(tokenizer.decode(ids, { skipSpecialTokens }));
      }),
      { numRuns: 500, seed: 20261126 },
    );
  });

  it('cuts the same text streamed as a whole, for any ids and stop string', () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(599), { minLength: 1, maxLength: 40 }),
        fc.nat(30),
        fc.integer({ min: 1, max: 6 }),
        (ids, start, length) => {
          const whole = tokenizer.decode(ids, { skipSpecialTokens: true });
          const stop = Array.from(whole)
            .slice(start, start + length)
            .join('');
          fc.pre(stop !== '');
          const detokenizer = new Detokenizer(tokenizer, { stop: [stop] });
          let text = '';
          for (const id of ids) text += detokenizer.push(id).text;
          text += detokenizer.finish().text;
          expect(text).to.equal(whole.slice(0, whole.indexOf(stop)));
        },
      ),
      { numRuns: 500, seed: 20261126 },
    );
  });
});
