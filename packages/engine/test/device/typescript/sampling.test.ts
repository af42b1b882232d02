import { expect } from 'chai';
import type { SampleCommand } from '../../../src/device/commands.js';
import { uniform } from '../../../src/device/typescript/sampling.js';
import { CommandBench, floatsIn, intsIn } from '../command-bench.js';

const vocabSize = 6;

/** One row, greedy and without adjustments unless `params` says otherwise. */
async function sampleRow(logits: number[], params: Partial<Params> = {}): Promise<Sampled> {
  const bench = new CommandBench();
  const { inputs } = bench;
  const command: SampleCommand = {
    op: 'sample',
    logits: bench.floats(logits, 4 * vocabSize),
    vocabSize,
    tokenIds: bench.ints([], 4),
    logprobs: bench.floats([], 4),
    ranks: bench.ints([], 4),
    maxTopLogprobs: 3,
    topIds: bench.ints([], 12),
    topLogprobs: bench.floats([], 12),
  };
  const all: Params = { ...defaults, ...params };
  bench.setCounts({ logitRows: 1 });
  inputs.targets[0] = all.target;
  inputs.temperatures[0] = all.temperature;
  inputs.topKs[0] = all.topK;
  inputs.topPs[0] = all.topP;
  inputs.minPs[0] = all.minP;
  inputs.repetitionPenalties[0] = all.repetitionPenalty;
  inputs.presencePenalties[0] = all.presencePenalty;
  inputs.frequencyPenalties[0] = all.frequencyPenalty;
  inputs.seeds[0] = all.seed;
  inputs.counters[0] = all.counter;
  inputs.numTopLogprobs[0] = 3;
  inputs.adjustmentStarts.set([0, all.adjustments.length]);
  for (const [i, [token, bias, outputCount, seen]] of all.adjustments.entries()) {
    inputs.adjustmentWords.set([token, 0, outputCount, seen], 4 * i);
    inputs.adjustmentBiases[4 * i + 1] = bias;
  }
  await bench.run(command);
  return {
    tokenId: intsIn(command.tokenIds)[0] ?? NaN,
    logprob: floatsIn(command.logprobs)[0] ?? NaN,
    rank: intsIn(command.ranks)[0] ?? NaN,
    topIds: [...intsIn(command.topIds).subarray(0, 3)],
    topLogprobs: [...floatsIn(command.topLogprobs).subarray(0, 3)],
  };
}

interface Params {
  target: number;
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
  presencePenalty: number;
  frequencyPenalty: number;
  seed: bigint;
  counter: number;
  adjustments: [token: number, bias: number, outputCount: number, seen: number][];
}

interface Sampled {
  tokenId: number;
  logprob: number;
  rank: number;
  topIds: number[];
  topLogprobs: number[];
}

const defaults: Params = {
  target: -1,
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 1n,
  counter: 0,
  adjustments: [],
};

/** Which tokens come up in 300 draws. */
async function support(logits: number[], params: Partial<Params>): Promise<number[]> {
  const seen = new Set<number>();
  for (let counter = 0; counter < 300; counter++) seen.add((await sampleRow(logits, { temperature: 1, ...params, counter })).tokenId);
  return [...seen].sort();
}

describe('sample on the TypeScript device', () => {
  const logits = [0, 2, 1, 2, -1, 0.5];

  it('takes the lower id of equal largest logits when greedy', async () => {
    expect((await sampleRow(logits)).tokenId).to.equal(1);
  });

  it('reports log-probability, rank and alternatives of the unmodified logits', async () => {
    const { tokenId, logprob, rank, topIds, topLogprobs } = await sampleRow(logits, { adjustments: [[2, 100, 0, 0]] });
    const normalizer = Math.log(logits.reduce((sum, x) => sum + Math.exp(x), 0));
    expect(tokenId).to.equal(2);
    expect(rank).to.equal(3);
    expect(logprob).to.be.closeTo(1 - normalizer, 1e-6);
    expect(topIds).to.deep.equal([1, 3, 2]);
    expect(topLogprobs[0]).to.be.closeTo(2 - normalizer, 1e-6);
  });

  it('scores a target in place of sampling', async () => {
    const { tokenId, rank } = await sampleRow(logits, { target: 4, temperature: 1 });
    expect(tokenId).to.equal(4);
    expect(rank).to.equal(6);
  });

  it('divides positive and multiplies negative logits of seen tokens by the repetition penalty', async () => {
    const penalized = {
      repetitionPenalty: 4,
      adjustments: [[1, 0, 0, 1] as [number, number, number, number], [3, 0, 0, 1] as [number, number, number, number]],
    };
    expect((await sampleRow(logits, penalized)).tokenId).to.equal(2);
    expect((await sampleRow([-1, -0.5, -9, -9, -9, -9], { repetitionPenalty: 4, adjustments: [[1, 0, 0, 1]] })).tokenId).to.equal(0);
  });

  it('subtracts the frequency penalty per occurrence and the presence penalty once', async () => {
    expect((await sampleRow([3, 2, 0, 0, 0, 0], { frequencyPenalty: 0.6, adjustments: [[0, 0, 2, 1]] })).tokenId).to.equal(1);
    expect((await sampleRow([3, 2, 0, 0, 0, 0], { presencePenalty: 0.6, adjustments: [[0, 0, 2, 1]] })).tokenId).to.equal(0);
  });

  it('never samples a masked token', async () => {
    expect(await support([9, 1, 1, 1, 1, 1], { adjustments: [[0, -Infinity, 0, 0]] })).to.deep.equal([1, 2, 3, 4, 5]);
  });

  it('keeps ties at the k-th place', async () => {
    expect(await support(logits, { topK: 1 })).to.deep.equal([1, 3]);
  });

  it('keeps the smallest set whose probabilities reach top_p', async () => {
    // 0.5, 0.25, 0.125, ...
    const halves = [0, -1, -2, -3, -4, -5].map((power) => power * Math.LN2);
    expect(await support(halves, { topP: 0.4 })).to.deep.equal([0]);
    expect(await support(halves, { topP: 0.7 })).to.deep.equal([0, 1]);
  });

  it('keeps what is at least min_p times as probable as the best', async () => {
    const halves = [0, -1, -2, -3, -4, -5].map((power) => power * Math.LN2);
    expect(await support(halves, { minP: 0.2 })).to.deep.equal([0, 1, 2]);
  });

  it('draws each token as often as its probability says', async () => {
    const halves = [0, -1, -2, -Infinity, -Infinity, -Infinity].map((power) => power * Math.LN2);
    const counts = [0, 0, 0];
    for (let counter = 0; counter < 700; counter++) {
      const { tokenId } = await sampleRow(halves, { temperature: 1, seed: 7n, counter });
      counts[tokenId] = (counts[tokenId] ?? 0) + 1;
    }
    expect(counts[0]).to.be.closeTo(400, 40);
    expect(counts[1]).to.be.closeTo(200, 40);
  });

  it('reports −1 where no logit is usable', async () => {
    for (const bad of [NaN, Infinity]) {
      const logits = Array<number>(vocabSize).fill(0);
      logits[3] = bad;
      const { tokenId, logprob, rank } = await sampleRow(logits);
      expect([tokenId, rank], String(bad)).to.deep.equal([-1, 0]);
      expect(logprob, String(bad)).to.satisfy(Number.isNaN);
    }
    expect((await sampleRow(Array<number>(vocabSize).fill(NaN))).tokenId).to.equal(-1);
  });
});

describe('uniform', () => {
  it('gives the numbers of splitmix64', () => {
    // First output of splitmix64 seeded with 0 is 0xE220A8397B1DCDAF (reference implementation by Vigna); here it seeds the second.
    expect(uniform(0n, 0)).to.equal(splitmixTwice() / 2 ** 24);
  });

  it('depends on seed and counter and stays in [0, 1)', () => {
    const values = new Set<number>();
    for (let seed = 0n; seed < 20n; seed++) for (let counter = 0; counter < 20; counter++) values.add(uniform(seed, counter));
    expect(values.size).to.equal(400);
    for (const value of values) expect(value).to.be.within(0, 1 - 2 ** -24);
  });
});

/** The top 24 bits of splitmix64(0xE220A8397B1DCDAF), by the steps of the paper written out. */
function splitmixTwice(): number {
  const mask = (1n << 64n) - 1n;
  let z = (0xe220a8397b1dcdafn + 0x9e3779b97f4a7c15n) & mask;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & mask;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & mask;
  return Number((z ^ (z >> 31n)) >> 40n);
}
