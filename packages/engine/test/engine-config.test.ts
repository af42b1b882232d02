import { expect } from 'chai';
import { isMoeError } from '@moe-server/core';
import type { EngineOptions } from '../src/engine-config.js';
import { resolveEngineConfig, stepLimitsFor } from '../src/engine-config.js';
import { FakeRunner } from './fake-runner.js';

const runner = new FakeRunner({ limits: { maxNumTokens: 64, maxNumSeqs: 8, maxLogitRows: 6, maxBlocksPerSeq: 16 } });
const options: EngineOptions = { runner, numBlocks: 32, blockSize: 4, maxModelLen: 64, eosTokenIds: [2], maxNumSeqs: 4 };

describe('resolveEngineConfig', () => {
  it('takes what is left out from the runner', () => {
    expect(resolveEngineConfig(options)).to.deep.include({
      maxNumSeqs: 4,
      maxNumBatchedTokens: 64,
      maxLogitRows: 6,
      enablePrefixCaching: true,
    });
  });

  const refused: readonly [Partial<EngineOptions>, string, string][] = [
    [{ numBlocks: 0 }, 'numBlocks', 'at least 1'],
    [{ blockSize: 1.5 }, 'blockSize', 'got 1.5'],
    [{ maxNumBatchedTokens: 65 }, 'maxNumBatchedTokens', '64 tokens'],
    [{ maxNumSeqs: 9 }, 'maxNumSeqs', '8 sequences'],
    [{ maxNumSeqs: 7 }, 'maxNumSeqs', '6 logit rows'],
    [{ maxNumBatchedTokens: 3 }, 'maxNumBatchedTokens', 'at least maxNumSeqs (4)'],
    [{ maxModelLen: 65 }, 'maxModelLen', '64 positions'],
  ];
  for (const [change, option, text] of refused) {
    it(`refuses ${JSON.stringify(change)}, naming ${option}`, () => {
      try {
        resolveEngineConfig({ ...options, ...change });
        expect.fail('expected an error');
      } catch (error) {
        if (!isMoeError(error)) throw error;
        expect([error.code, error.details.option]).to.deep.equal(['MOE_USAGE', option]);
        expect(error.message).to.contain(option).and.to.contain(text);
      }
    });
  }
});

describe('stepLimitsFor', () => {
  it('leaves room for every token that one request can adjust', () => {
    const sizes = { maxNumSeqs: 256, maxNumBatchedTokens: 2048, maxModelLen: 40_960, blockSize: 16, vocabSize: 151_936 };
    expect(stepLimitsFor(sizes)).to.deep.equal({
      maxNumTokens: 2048,
      maxNumSeqs: 256,
      maxLogitRows: 256,
      maxBlocksPerSeq: 2560,
      maxAdjustments: 65_536,
    });
    expect(stepLimitsFor({ ...sizes, maxModelLen: 131_072 }).maxAdjustments).to.equal(133_120);
  });

  it('scores as many prompt tokens per step as the memory for logits allows', () => {
    const sizes = { maxNumSeqs: 16, maxNumBatchedTokens: 512, maxModelLen: 2048, blockSize: 16, vocabSize: 8192 };
    expect(stepLimitsFor(sizes)).to.include({ maxLogitRows: 512, maxAdjustments: 65_536 });
    expect(stepLimitsFor({ ...sizes, vocabSize: 262_144 }).maxLogitRows).to.equal(64);
  });
});
