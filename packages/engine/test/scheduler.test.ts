import { expect } from 'chai';
import fc from 'fast-check';
import { BlockManager } from '../src/block-manager.js';
import { resolveEngineConfig } from '../src/engine-config.js';
import type { SamplingParams } from '../src/request.js';
import type { ScheduledStep } from '../src/scheduler.js';
import { Scheduler } from '../src/scheduler.js';
import { Sequence } from '../src/sequence.js';
import { FakeRunner, prompt, sampling } from './fake-runner.js';

interface Options {
  readonly numBlocks?: number;
  readonly maxNumSeqs?: number;
  readonly maxNumBatchedTokens?: number;
  readonly maxLogitRows?: number;
  readonly maxAdjustments?: number;
  readonly enablePrefixCaching?: boolean;
}

/** A scheduler with blocks of 4 tokens, and what a test does with it. */
class Bench {
  readonly blocks: BlockManager;
  readonly scheduler: Scheduler;
  #arrival = 0;

  constructor({
    numBlocks = 64,
    maxNumSeqs = 8,
    maxNumBatchedTokens = 64,
    maxLogitRows = 64,
    maxAdjustments = 4096,
    ...rest
  }: Options = {}) {
    const runner = new FakeRunner({ limits: { maxLogitRows, maxAdjustments, maxNumTokens: maxNumBatchedTokens, maxNumSeqs } });
    const config = resolveEngineConfig({ runner, numBlocks, blockSize: 4, maxModelLen: 256, eosTokenIds: [], ...rest });
    this.blocks = new BlockManager(config);
    this.scheduler = new Scheduler(config, this.blocks);
  }

  add(length: number, changes: Partial<SamplingParams> = {}, seed = this.#arrival): Sequence {
    const arrival = this.#arrival++;
    const request = { id: `s${String(arrival)}`, promptTokenIds: prompt(length, seed), sampling: sampling({ maxTokens: 100, ...changes }) };
    const sequence = new Sequence({ request, arrival, randomSeed: 0n, eosTokenIds: [], arrivedAt: 0 });
    this.scheduler.add(sequence);
    return sequence;
  }

  /** Schedules, "runs" and gives every row that samples the token 1. Returns tokens per sequence as `s0:3 s1:1`. */
  step(): string {
    const step = this.scheduler.schedule();
    if (step === undefined) return '';
    const summary = describeStep(step);
    this.scheduler.complete(step);
    step.sequences.forEach((sequence, i) => {
      for (const { target } of step.batch.sequences[i]?.rows ?? []) {
        const output = { tokenId: 1, logprob: 0, rank: 1, topLogprobs: [] };
        if (target >= 0) sequence.addPromptOutput(output);
        else sequence.addToken(output);
      }
    });
    return summary;
  }
}

function describeStep({ sequences, batch }: ScheduledStep): string {
  return sequences.map(({ id }, i) => `${id}:${String(batch.sequences[i]?.tokenIds.length)}`).join(' ');
}

describe('Scheduler', () => {
  it('runs prompts together and then one token of each', () => {
    const bench = new Bench();
    bench.add(5);
    bench.add(3);
    expect(bench.step()).to.equal('s0:5 s1:3');
    expect(bench.step()).to.equal('s0:1 s1:1');
  });

  it('has nothing to do without requests', () => {
    expect(new Bench().scheduler.schedule()).to.equal(undefined);
  });

  it('cuts a prompt into chunks that fill what decoding leaves of the step', () => {
    const bench = new Bench({ maxNumBatchedTokens: 8 });
    bench.add(3);
    bench.step();
    bench.add(20);
    expect(bench.step()).to.equal('s0:1 s1:7');
    expect(bench.step()).to.equal('s0:1 s1:7');
    expect(bench.step()).to.equal('s0:1 s1:6');
    expect(bench.step()).to.equal('s0:1 s1:1');
  });

  it('lets prompts finish in the order in which they came', () => {
    const bench = new Bench({ maxNumBatchedTokens: 10 });
    bench.add(12);
    bench.add(12);
    expect(bench.step()).to.equal('s0:10');
    expect(bench.step()).to.equal('s0:2 s1:8');
    expect(bench.step()).to.equal('s0:1 s1:4');
  });

  it('runs no more than maxNumSeqs at a time', () => {
    const bench = new Bench({ maxNumSeqs: 2 });
    const first = bench.add(2);
    bench.add(2);
    bench.add(2);
    expect(bench.step()).to.equal('s0:2 s1:2');
    expect(bench.scheduler.numWaiting).to.equal(1);
    bench.scheduler.finish(first);
    expect(bench.step()).to.equal('s1:1 s2:2');
  });

  it('does not let a small request overtake a large one that waits for blocks', () => {
    const bench = new Bench({ numBlocks: 4 });
    const first = bench.add(9);
    bench.add(10);
    bench.add(1);
    expect(bench.step()).to.equal('s0:9');
    expect(bench.step()).to.equal('s0:1');
    bench.scheduler.finish(first);
    expect(bench.step()).to.equal('s1:10');
  });

  it('chunks a scored prompt so that its rows fit', () => {
    const bench = new Bench({ maxLogitRows: 8, maxNumSeqs: 4 });
    bench.add(20, { promptLogprobs: 0 });
    expect([bench.step(), bench.step(), bench.step(), bench.step()]).to.deep.equal(['s0:8', 's0:8', 's0:4', 's0:1']);
  });

  it('makes those wait whose adjustments do not fit, and nobody overtakes them', () => {
    const bench = new Bench({ maxAdjustments: 10 });
    bench.add(6, { repetitionPenalty: 2 });
    bench.add(6, { repetitionPenalty: 2 });
    bench.add(2);
    expect(bench.step()).to.equal('s0:6 s1:5 s2:2');
    bench.add(2);
    expect(bench.step()).to.equal('s0:1 s2:1');
    expect(bench.scheduler.numWaiting).to.equal(1);
  });

  it('refuses a request whose adjustments no step can hold', () => {
    const bench = new Bench({ maxAdjustments: 3 });
    bench.add(6, { repetitionPenalty: 2 });
    bench.step();
    expect(bench.step()).to.equal('');
    const [refused] = bench.scheduler.takeRefused();
    expect(refused?.error.code).to.equal('MOE_CAPACITY_MEMORY');
    expect(refused?.error.message).to.contain('6 different tokens').and.to.contain('adjust 3');
    expect(bench.blocks.numFreeBlocks).to.equal(64);
  });

  it('refuses it also while it waits, and goes on with the next', () => {
    const bench = new Bench({ maxAdjustments: 1 });
    bench.add(1, {
      logitBias: [
        [1, 1],
        [2, 1],
      ],
    });
    bench.add(2);
    expect(bench.step()).to.equal('s1:2');
    expect(bench.scheduler.takeRefused()[0]?.error.code).to.equal('MOE_CAPACITY_MEMORY');
  });

  it('refuses a prompt that can never fit and goes on with the next', () => {
    const bench = new Bench({ numBlocks: 4 });
    bench.add(17);
    bench.add(4);
    expect(bench.step()).to.equal('s1:4');
    const refused = bench.scheduler.takeRefused();
    expect(refused.map(({ sequence, error }) => [sequence.id, error.code])).to.deep.equal([['s0', 'MOE_CAPACITY_MEMORY']]);
    expect(bench.scheduler.takeRefused()).to.deep.equal([]);
  });

  it('refuses a sequence that outgrows the whole cache while it runs alone', () => {
    const bench = new Bench({ numBlocks: 2 });
    const sequence = bench.add(7);
    expect([bench.step(), bench.step(), bench.step()]).to.deep.equal(['s0:7', 's0:1', '']);
    expect(bench.scheduler.takeRefused()[0]?.sequence).to.equal(sequence);
    expect(sequence.status).to.equal('finished');
    expect(bench.blocks.numFreeBlocks).to.equal(2);
  });

  describe('preemption', () => {
    it('takes the blocks of the youngest, which waits in front and keeps its tokens', () => {
      const bench = new Bench({ numBlocks: 5, enablePrefixCaching: false });
      const first = bench.add(7);
      const second = bench.add(4);
      const steps = [];
      while (second.numPreemptions === 0) steps.push(bench.step());
      // Two and one blocks for the prompts; the last two free ones are taken at s1's position 4 and s0's position 8, none is left at s1's 8.
      expect(steps).to.deep.equal(['s0:7 s1:4', ...Array.from({ length: 4 }, () => 's0:1 s1:1'), 's0:1']);
      expect(second.status).to.equal('waiting');
      expect(second.tokenIds).to.have.length(9);
      expect(bench.scheduler.counters.numPreemptions).to.equal(1);
      bench.add(1);
      expect(bench.step()).to.equal('s0:1');
      bench.scheduler.finish(first);
      expect(bench.step()).to.equal('s1:9 s2:1');
    });

    it('spares the oldest, so that it always finishes', () => {
      const bench = new Bench({ numBlocks: 6, maxNumSeqs: 4 });
      const first = bench.add(4, { maxTokens: 20 });
      for (let i = 0; i < 3; i++) bench.add(4);
      while (first.numGeneratedTokens < 20) expect(bench.step()).to.match(/^s0:/);
      expect(first.numPreemptions).to.equal(0);
    });

    it('computes again only what the prefix cache has lost', () => {
      const bench = new Bench({ numBlocks: 5 });
      const first = bench.add(7);
      const second = bench.add(4);
      while (second.numPreemptions === 0) bench.step();
      bench.scheduler.finish(first);
      expect(bench.step()).to.match(/^s1:[1-4]$/);
      expect(second.usage.cachedTokens).to.equal(0);
    });

    it('counts a preempted request only once as a query of the prefix cache', () => {
      const bench = new Bench({ numBlocks: 5 });
      const first = bench.add(7);
      const second = bench.add(4);
      while (second.numPreemptions === 0) bench.step();
      bench.scheduler.finish(first);
      bench.step();
      expect(bench.scheduler.counters.prefixCacheQueries).to.equal(11);
      expect(bench.scheduler.counters.prefixCacheHits).to.equal(0);
    });
  });

  describe('prefix reuse', () => {
    it('skips full blocks of an earlier prompt and still computes the last token', () => {
      const bench = new Bench();
      bench.scheduler.finish(bench.add(12, {}, 77));
      bench.add(12, {}, 77);
      expect(bench.step()).to.equal('s1:12');
      const third = bench.add(12, {}, 77);
      expect(bench.step()).to.equal('s1:1 s2:4');
      expect(third.usage.cachedTokens).to.equal(8);
      expect(bench.scheduler.counters).to.include({ prefixCacheQueries: 24, prefixCacheHits: 8 });
    });

    it('does not skip tokens whose prompt log-probabilities are wanted', () => {
      const bench = new Bench();
      bench.add(12, {}, 77);
      bench.step();
      bench.add(12, { promptLogprobs: 0 }, 77);
      expect(bench.step()).to.equal('s0:1 s1:12');
    });

    it('offers no block of a step that was never completed', () => {
      const bench = new Bench();
      const first = bench.add(12, {}, 77);
      bench.scheduler.schedule();
      bench.scheduler.finish(first);
      bench.add(12, {}, 77);
      expect(bench.step()).to.equal('s1:12');
    });
  });

  it('serves everyone within bounds, whatever comes', () => {
    const arrival = fc.record({
      length: fc.integer({ min: 1, max: 30 }),
      maxTokens: fc.integer({ min: 1, max: 12 }),
      after: fc.nat(5),
      scored: fc.boolean(),
    });
    const limits = fc.record({
      numBlocks: fc.integer({ min: 3, max: 20 }),
      maxNumSeqs: fc.integer({ min: 1, max: 4 }),
      maxNumBatchedTokens: fc.integer({ min: 4, max: 16 }),
      maxLogitRows: fc.integer({ min: 4, max: 8 }),
      enablePrefixCaching: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(arrival, { minLength: 1, maxLength: 12 }), limits, (arrivals, options) => {
        const bench = new Bench(options);
        const alive = new Set<Sequence>();
        const pending = [...arrivals];
        let steps = 0;
        let wait = 0;
        while (pending.length > 0 || alive.size > 0) {
          if (wait-- <= 0) {
            const next = pending.shift();
            if (next !== undefined) {
              alive.add(
                bench.add(next.length, { maxTokens: next.maxTokens, ...(next.scored ? { promptLogprobs: 0 } : {}) }, next.length % 3),
              );
              wait = next.after;
            }
          }
          bench.step();
          for (const { sequence } of bench.scheduler.takeRefused()) alive.delete(sequence);
          for (const sequence of alive) {
            if (sequence.numGeneratedTokens < sequence.sampling.maxTokens) continue;
            if (sequence.promptOutputs !== undefined) expect(sequence.promptOutputs).to.have.length(sequence.promptLength);
            bench.scheduler.finish(sequence);
            alive.delete(sequence);
          }
          expect(++steps, 'steps').to.be.lessThan(3000);
        }
        expect(bench.blocks.numFreeBlocks).to.equal(options.numBlocks);
        expect([bench.scheduler.numRunning, bench.scheduler.numWaiting]).to.deep.equal([0, 0]);
      }),
      { numRuns: 200, seed: 20261126 },
    );
  });
});
