import { expect } from 'chai';
import type { RowOutput } from '../src/batch.js';
import type { SamplingParams } from '../src/request.js';
import { Sequence } from '../src/sequence.js';
import { sampling } from './fake-runner.js';

const eos = 7;

function sequence(promptTokenIds: readonly number[], changes: Partial<SamplingParams> = {}): Sequence {
  const request = { id: 'a', promptTokenIds, sampling: sampling(changes) };
  return new Sequence({ request, arrival: 0, randomSeed: 5n, eosTokenIds: [eos], arrivedAt: 0 });
}

function output(tokenId: number): RowOutput {
  return {
    tokenId,
    logprob: -1,
    rank: 2,
    topLogprobs: [
      { tokenId: 3, logprob: -0.5 },
      { tokenId, logprob: -1 },
    ],
  };
}

describe('Sequence', () => {
  describe('#toBatch', () => {
    it('asks for one row at the end of the prompt and none before', () => {
      const a = sequence([1, 2, 3, 4, 5]);
      a.numScheduledTokens = 3;
      expect(a.toBatch().rows).to.deep.equal([]);
      a.numComputedTokens = 3;
      a.numScheduledTokens = 2;
      const batch = a.toBatch();
      expect(batch.tokenIds).to.deep.equal([4, 5]);
      expect(batch.startPosition).to.equal(3);
      expect(batch.rows.map(({ tokenIndex, target, counter, seed }) => [tokenIndex, target, counter, seed])).to.deep.equal([
        [1, -1, 0, 5n],
      ]);
    });

    it('scores every prompt token but the first when asked to', () => {
      const a = sequence([1, 2, 3, 4], { promptLogprobs: 2 });
      a.numScheduledTokens = 4;
      const { rows } = a.toBatch();
      expect(rows.map(({ tokenIndex, target }) => [tokenIndex, target])).to.deep.equal([
        [0, 2],
        [1, 3],
        [2, 4],
        [3, -1],
      ]);
      expect(rows.map(({ numTopLogprobs }) => numTopLogprobs)).to.deep.equal([2, 2, 2, 0]);
    });

    it('does not score again what was scored before a preemption', () => {
      const a = sequence([1, 2, 3, 4], { promptLogprobs: 0 });
      a.addPromptOutput(output(2));
      a.addPromptOutput(output(3));
      a.numScheduledTokens = 4;
      expect(a.toBatch().rows.map(({ target }) => target)).to.deep.equal([4, -1]);
      expect(a.maxSkippedTokens).to.equal(2);
    });

    it('draws nothing when no tokens are wanted', () => {
      const a = sequence([1, 2], { promptLogprobs: 0, maxTokens: 0 });
      a.numScheduledTokens = 2;
      expect(a.toBatch().rows.map(({ target }) => target)).to.deep.equal([2]);
    });

    it('counts generated tokens for the random numbers, also when the cache was lost', () => {
      const a = sequence([1, 2], { seed: -1 });
      a.addToken(output(5));
      a.addToken(output(6));
      a.numScheduledTokens = 4;
      expect(a.toBatch().rows.map(({ tokenIndex, counter, seed }) => [tokenIndex, counter, seed])).to.deep.equal([[3, 2, 2n ** 64n - 1n]]);
    });
  });

  describe('#chunkLength', () => {
    const cases: readonly [string, Sequence, readonly [number, number, number, number], number][] = [
      ['takes the whole prompt where it fits', sequence([1, 2, 3]), [0, 8, 8, 8], 3],
      ['stops at the token budget', sequence([1, 2, 3]), [0, 2, 8, 8], 2],
      ['leaves the last token when no logit row is left', sequence([1, 2, 3]), [0, 8, 0, 8], 2],
      ['takes as many scored tokens as there are rows', sequence([1, 2, 3, 4, 5], { promptLogprobs: 0 }), [0, 8, 2, 8], 2],
      ['needs one row for each scored token and one to sample', sequence([1, 2, 3], { promptLogprobs: 0 }), [0, 8, 3, 8], 3],
      ['leaves the sampled token when its adjustments do not fit', sequence([1, 2, 3], { repetitionPenalty: 2 }), [0, 8, 8, 2], 2],
      ['gives nothing when the only token has no row', sequence([1]), [0, 8, 0, 8], 0],
    ];
    for (const [behaviour, a, args, expected] of cases) it(behaviour, () => expect(a.chunkLength(...args)).to.equal(expected));
  });

  describe('#addToken', () => {
    it('reports log-probabilities only when asked to, and no more than asked for', () => {
      expect(sequence([1]).addToken(output(5)).logprob).to.equal(undefined);
      expect(sequence([1], { logprobs: 0 }).addToken(output(5))).to.deep.equal({ tokenId: 5, logprob: -1, rank: 2, topLogprobs: [] });
      expect(sequence([1], { logprobs: 1 }).addToken(output(5)).topLogprobs).to.deep.equal([{ tokenId: 3, logprob: -0.5 }]);
    });

    it('keeps the counts that penalties need', () => {
      const a = sequence([1, 2, 1], { repetitionPenalty: 1.5, frequencyPenalty: 1 });
      a.addToken(output(2));
      a.addToken(output(9));
      a.addToken(output(9));
      expect(a.adjustments.entries).to.deep.equal([
        { tokenId: 1, bias: 0, outputCount: 0, isSeen: true },
        { tokenId: 2, bias: 0, outputCount: 1, isSeen: true },
        { tokenId: 9, bias: 0, outputCount: 2, isSeen: true },
      ]);
    });

    it('leaves prompt tokens alone when only generated ones are penalized', () => {
      const a = sequence([1, 2], { presencePenalty: 1 });
      expect(a.adjustments.entries).to.deep.equal([]);
      a.addToken(output(2));
      expect(a.adjustments.entries).to.deep.equal([{ tokenId: 2, bias: 0, outputCount: 1, isSeen: true }]);
    });

    it('masks end tokens until min_tokens were generated, then gives them their own bias back', () => {
      const a = sequence([1], {
        minTokens: 2,
        stopTokenIds: [4],
        logitBias: [
          [4, 3],
          [6, -1],
        ],
      });
      const biases = (): unknown => a.adjustments.entries.map(({ tokenId, bias }) => [tokenId, bias]);
      expect(biases()).to.deep.equal([
        [4, -Infinity],
        [6, -1],
        [eos, -Infinity],
      ]);
      expect(a.adjustments.numMasked).to.equal(2);
      a.addToken(output(5));
      expect(biases()).to.deep.equal([
        [4, -Infinity],
        [6, -1],
        [eos, -Infinity],
      ]);
      a.addToken(output(5));
      expect(biases()).to.deep.equal([
        [4, 3],
        [6, -1],
      ]);
    });

    it('does not mask the end token that ignore_eos lets through', () => {
      const a = sequence([1], { minTokens: 2, ignoreEos: true });
      expect(a.adjustments.entries).to.deep.equal([]);
      expect(a.isEndToken(eos)).to.equal(false);
    });
  });
});
