import { expect } from 'chai';
import fc from 'fast-check';
import { checkStopStrings, StopStrings } from '../../src/text/stop-strings.js';

function search(stop: readonly string[], pieces: readonly string[]): { text: string; stop: string | undefined } {
  const strings = new StopStrings(stop);
  let text = '';
  for (const piece of pieces) {
    const result = strings.push(piece);
    text += result.text;
    if (result.stop !== undefined) return { text, stop: result.stop };
  }
  return { text: text + strings.finish(), stop: undefined };
}

/** The same by trying every end. */
function naive(stop: readonly string[], text: string): { text: string; stop: string | undefined } {
  for (let end = 1; end <= text.length; end++) {
    const found = stop.filter((each) => text.slice(0, end).endsWith(each)).sort((a, b) => b.length - a.length)[0];
    if (found !== undefined) return { text: text.slice(0, end - found.length), stop: found };
  }
  return { text, stop: undefined };
}

describe('StopStrings', () => {
  it('cuts the text before a stop string inside a piece', () => {
    expect(search(['END'], ['abENDcd'])).to.deep.equal({ text: 'ab', stop: 'END' });
  });

  it('finds one that is spread over pieces', () => {
    expect(search(['\n\nUser:'], ['Hi\n', '\nUs', 'er', ': x'])).to.deep.equal({ text: 'Hi', stop: '\n\nUser:' });
  });

  it('holds back only what may still become a stop string', () => {
    const strings = new StopStrings(['aab']);
    expect(['xa', 'a', 'a', 'c'].map((piece) => strings.push(piece).text)).to.deep.equal(['x', '', 'a', 'aac']);
  });

  it('gives back what it held when the text ends', () => {
    expect(search(['END'], ['abEN'])).to.deep.equal({ text: 'abEN', stop: undefined });
  });

  it('takes the one that is complete first, the longest of those that end together', () => {
    expect(search(['bcd', 'bc'], ['abcd']).stop).to.equal('bc');
    expect(search(['c', 'abc'], ['abc'])).to.deep.equal({ text: '', stop: 'abc' });
  });

  it('passes everything on without stop strings', () => {
    expect(new StopStrings([]).push('abc')).to.deep.equal({ text: 'abc', stop: undefined });
  });

  it('finds the same as a naive search however the text is cut', () => {
    const text = fc.array(fc.constantFrom('a', 'b', 'é', '😀'), { maxLength: 5 }).map((parts) => parts.join(''));
    const stop = fc.array(
      text.filter((each) => each !== ''),
      { maxLength: 4 },
    );
    fc.assert(
      fc.property(stop, fc.array(text, { maxLength: 8 }), (stops, pieces) => {
        expect(search(stops, pieces)).to.deep.equal(naive(stops, pieces.join('')));
      }),
      { numRuns: 1000, seed: 20261126 },
    );
  });
});

describe('checkStopStrings', () => {
  it('takes four strings', () => {
    expect(checkStopStrings(['a', 'b', 'c', 'd'])).to.have.length(4);
  });

  const bad: readonly [string, readonly string[], string][] = [
    ['more than four', Array.from({ length: 1000 }, () => 'a'), '1000 strings'],
    ['an empty one', ['a', ''], 'empty'],
    ['a very long one', ['a'.repeat(1_000_000)], '1000000 characters'],
    ['half of a surrogate pair', ['\ud83d'], 'surrogate'],
    ['something else', [1 as unknown as string], 'a list of strings'],
  ];
  for (const [what, stop, text] of bad) {
    it(`refuses ${what}`, () => {
      expect(() => checkStopStrings(stop))
        .to.throw(text)
        .with.deep.property('details', { param: 'stop' });
    });
  }
});
