import { expect } from 'chai';
import fc from 'fast-check';
import { MoeError } from '@moe-server/core';
import type { GenerationRequest } from '../src/request.js';
import type { FakeRunnerOptions } from './fake-runner.js';
import { prompt } from './fake-runner.js';
import { bench, ending, eos, request, run, seen, tokenIds } from './engine-bench.js';

describe('Engine', () => {
  it('generates maxTokens tokens and reports usage', async () => {
    const events = await run(bench(), request('a', 5, { maxTokens: 3 }));
    expect(events.map(({ type }) => type)).to.deep.equal(['token', 'token', 'token', 'finish']);
    expect(events.at(-1)).to.deep.equal({
      type: 'finish',
      requestId: 'a',
      reason: 'length',
      stopTokenId: undefined,
      usage: { promptTokens: 5, completionTokens: 3, cachedTokens: 0 },
    });
  });

  it('takes requests while it runs and waits without working when there are none', async () => {
    const a = bench();
    a.engine.start();
    await new Promise((resolve) => setImmediate(resolve));
    expect(a.runner.batches).to.have.length(0);
    await run(a, request('a', 2, { maxTokens: 1 }));
    expect(ending(a.events, 'a')).to.equal('length');
  });

  describe('finishing', () => {
    const endAfter = (n: number, tokenId: number): FakeRunnerOptions => ({ script: (_, row) => (row.counter === n ? tokenId : 5) });

    for (const tokenId of [eos, 998]) {
      it(`stops at the model's end token ${String(tokenId)}`, async () => {
        const events = await run(bench({}, endAfter(2, tokenId)), request('a', 3));
        expect(tokenIds(events, 'a')).to.deep.equal([5, 5, tokenId]);
        expect(events.at(-1)).to.include({ reason: 'stop', stopTokenId: tokenId });
      });
    }

    it('stops at a stop token of the request', async () => {
      const events = await run(bench({}, endAfter(1, 42)), request('a', 3, { stopTokenIds: [42] }));
      expect(events.at(-1)).to.include({ reason: 'stop', stopTokenId: 42 });
    });

    it('goes on past end tokens with ignoreEos, but not past stop tokens', async () => {
      const script = (_: readonly number[], { counter }: { counter: number }): number => (counter === 1 ? eos : counter === 3 ? 42 : 5);
      const events = await run(bench({}, { script }), request('a', 3, { ignoreEos: true, stopTokenIds: [42] }));
      expect(tokenIds(events, 'a')).to.deep.equal([5, eos, 5, 42]);
      expect(ending(events, 'a')).to.equal('stop');
    });

    it('lets no end or stop token come before min_tokens', async () => {
      const a = bench({}, { script: () => eos });
      const events = await run(a, request('a', 3, { minTokens: 3, maxTokens: 9, stopTokenIds: [0] }));
      expect(tokenIds(events, 'a').slice(0, 3)).to.not.include(eos).and.to.not.include(0);
      expect(tokenIds(events, 'a')).to.have.length(4);
      expect(ending(events, 'a')).to.equal('stop');
    });

    it('ends with length where the context is full', async () => {
      const events = await run(bench({ maxModelLen: 10 }), request('a', 8, { maxTokens: 50 }));
      expect(tokenIds(events, 'a')).to.have.length(2);
      expect(ending(events, 'a')).to.equal('length');
    });
  });

  describe('#addRequest', () => {
    const cases: readonly [string, GenerationRequest, string, string][] = [
      ['an empty prompt', request('a', 0), 'MOE_REQUEST_INVALID', 'no tokens'],
      [
        'a token id outside the vocabulary',
        { ...request('a', 1), promptTokenIds: [1, 1000] },
        'MOE_REQUEST_INVALID',
        'prompt token 1 is 1000',
      ],
      ['a token id that is no whole number', { ...request('a', 1), promptTokenIds: [1.5] }, 'MOE_REQUEST_INVALID', 'prompt token 0 is 1.5'],
      ['a prompt that fills the context', request('a', 200), 'MOE_REQUEST_CONTEXT_LENGTH', '200 tokens'],
      ['no tokens wanted and nothing to score', request('a', 2, { maxTokens: 0 }), 'MOE_REQUEST_INVALID', 'max_tokens 0'],
    ];
    for (const [what, bad, code, text] of cases) {
      it(`refuses ${what}`, () => {
        expect(() => {
          bench().engine.addRequest(bad);
        })
          .to.throw(MoeError, text)
          .with.property('code', code);
      });
    }

    it('refuses an id that is in use and takes it again later', async () => {
      const a = bench();
      a.engine.addRequest(request('a', 2));
      expect(() => {
        a.engine.addRequest(request('a', 2));
      }).to.throw(MoeError, '"a"');
      a.engine.abort('a');
      a.engine.addRequest(request('a', 2));
      await a.engine.drain();
      expect(ending(a.events, 'a')).to.equal('length');
    });

    it('refuses requests once it drains', async () => {
      const a = bench();
      await a.engine.drain();
      expect(() => {
        a.engine.addRequest(request('a', 2));
      }).to.throw(MoeError, 'shutting down');
    });
  });

  describe('log-probabilities', () => {
    it('reports those of generated tokens and as many alternatives as asked for', async () => {
      const events = await run(bench(), request('a', 3, { logprobs: 2, maxTokens: 1 }));
      const [event] = events;
      expect(event?.type === 'token' && event.token.topLogprobs).to.have.length(2);
      expect(event?.type === 'token' && event.token.logprob).to.be.a('number');
    });

    it('reports those of the prompt before the first token, the first one open', async () => {
      const a = bench({ maxNumBatchedTokens: 8 });
      const events = await run(a, request('a', 20, { promptLogprobs: 1, maxTokens: 2 }));
      const [event] = events;
      if (event?.type !== 'prompt') throw new Error('expected the prompt first');
      expect(event.tokens).to.have.length(20);
      expect(event.tokens[0]).to.equal(undefined);
      expect(event.tokens.slice(1).map((token) => token?.tokenId)).to.deep.equal(prompt(20, 1).slice(1));
      expect(event.tokens.slice(1).every((token) => token?.topLogprobs?.length === 1)).to.equal(true);
      expect(events.map(({ type }) => type)).to.deep.equal(['prompt', 'token', 'token', 'finish']);
    });

    for (const length of [1, 6]) {
      it(`scores a prompt of ${String(length)} without generating`, async () => {
        const events = await run(bench(), request('a', length, { promptLogprobs: 0, maxTokens: 0 }));
        expect(events.map(({ type }) => type)).to.deep.equal(['prompt', 'finish']);
        expect(events[0]?.type === 'prompt' && events[0].tokens).to.have.length(length);
        expect(events[1]).to.deep.include({ reason: 'length', usage: { promptTokens: length, completionTokens: 0, cachedTokens: 0 } });
      });
    }
  });

  describe('penalties and seeds', () => {
    it('hands the counts of generated tokens to the sampler', async () => {
      const a = bench({}, { script: (_, { counter }) => 100 + (counter % 2) });
      await run(a, request('a', 1, { frequencyPenalty: 1, maxTokens: 4 }));
      const counts = a.runner.batches.map(({ sequences }) =>
        sequences[0]?.rows[0]?.adjustments.map(({ tokenId, outputCount }) => [tokenId, outputCount]),
      );
      expect(counts).to.deep.equal([
        [],
        [[100, 1]],
        [
          [100, 1],
          [101, 1],
        ],
        [
          [100, 2],
          [101, 1],
        ],
      ]);
    });

    it('gives the same tokens for the same seed and others for another', async () => {
      const drawn = async (seed: number): Promise<number[]> => tokenIds(await run(bench(), request('a', 4, { temperature: 1, seed })), 'a');
      expect(await drawn(1)).to.deep.equal(await drawn(1));
      expect(await drawn(1)).to.not.deep.equal(await drawn(2));
    });

    it('draws a fresh seed where none is given', async () => {
      let seed = 0n;
      const a = bench({ randomSeed: () => ++seed });
      await run(a, request('a', 4, { temperature: 1 }), request('b', 4, { temperature: 1 }));
      expect(tokenIds(a.events, 'a')).to.not.deep.equal(tokenIds(a.events, 'b'));
    });
  });

  describe('#abort', () => {
    it('ends a request that waits', async () => {
      const a = bench({ maxNumSeqs: 1 });
      a.runner.beforeStep = (step) => {
        if (step === 1) a.engine.abort('b');
      };
      await run(a, request('a', 2, { maxTokens: 3 }), request('b', 2), request('c', 2, { maxTokens: 1 }));
      expect(seen(a.events, 'b')).to.deep.equal([['abort', undefined]]);
      expect(ending(a.events, 'c')).to.equal('length');
    });

    it('ends a request in the middle of its prompt', async () => {
      const a = bench({ maxNumBatchedTokens: 8 });
      a.runner.beforeStep = (step) => {
        if (step === 1) a.engine.abort('a');
      };
      await run(a, request('a', 40));
      expect(seen(a.events, 'a')).to.deep.equal([['abort', undefined]]);
      expect(a.runner.batches).to.have.length(2);
      expect(a.engine.stats().kvCacheUsage).to.equal(0);
    });

    it('ends a request that decodes, without the token of the running step', async () => {
      const a = bench();
      a.runner.beforeStep = (step) => {
        if (step === 2) a.engine.abort('a');
      };
      await run(a, request('a', 4, { maxTokens: 50 }), request('b', 4, { maxTokens: 50 }, 2));
      expect(tokenIds(a.events, 'a')).to.have.length(2);
      expect(ending(a.events, 'a')).to.equal('abort');
      expect(tokenIds(a.events, 'b')).to.have.length(50);
      expect(a.engine.stats().finished).to.deep.equal({ stop: 0, length: 1, abort: 1, error: 0 });
    });

    it('may be called by a listener, and later events keep their order', async () => {
      const a = bench();
      a.engine.onEvent((event) => {
        if (event.type === 'token' && event.requestId === 'a') a.engine.abort('b');
      });
      await run(a, request('a', 4, { maxTokens: 2 }), request('b', 4, {}, 2));
      expect(seen(a.events, 'b').at(-1)).to.deep.equal(['abort', undefined]);
      expect(tokenIds(a.events, 'b')).to.have.length(1);
    });

    it('knows nothing of an id that is not there', () => {
      const a = bench();
      a.engine.abort('nobody');
      expect(a.events).to.deep.equal([]);
    });
  });

  describe('#stop', () => {
    it('aborts what is alive and ends after the running step', async () => {
      const a = bench();
      let stopped: Promise<void> | undefined;
      a.runner.beforeStep = (step) => {
        if (step === 1) stopped = a.engine.stop();
      };
      for (const id of ['a', 'b']) a.engine.addRequest(request(id, 4, { maxTokens: 50 }));
      await a.engine.drain();
      await stopped;
      expect([ending(a.events, 'a'), ending(a.events, 'b')]).to.deep.equal(['abort', 'abort']);
      expect(a.runner.batches).to.have.length(2);
    });

    it('lets timers and messages in although the runner never waits', async () => {
      const a = bench({ maxModelLen: 256, numBlocks: 256 });
      const timer = setImmediate(() => {
        a.engine.abort('a');
      });
      await run(a, request('a', 4, { maxTokens: 250 }));
      clearImmediate(timer);
      expect(ending(a.events, 'a')).to.equal('abort');
    });
  });

  it('emits the events of a step while the next one runs', async () => {
    const a = bench();
    const order: string[] = [];
    a.runner.beforeStep = (step) => {
      order.push(`step ${String(step)}`);
    };
    a.engine.onEvent(({ type }) => order.push(type));
    await run(a, request('a', 4, { maxTokens: 2 }));
    expect(order).to.deep.equal(['step 0', 'step 1', 'token', 'token', 'finish']);
  });

  it('counts what happens', async () => {
    let now = 0;
    const a = bench({ clock: () => now++ });
    await run(a, request('a', 9, { maxTokens: 2 }));
    expect(a.engine.stats()).to.include({
      promptTokens: 9,
      generationTokens: 2,
      numSteps: 2,
      numRunning: 0,
      numWaiting: 0,
      prefixCacheQueries: 9,
    });
    const { ttftMs, itlMs, requests, stepTokens } = a.engine.takeMetrics();
    expect([ttftMs.length, itlMs.length, requests.length]).to.deep.equal([1, 1, 1]);
    expect(stepTokens).to.deep.equal([9, 1]);
  });

  it('gives a request the same bits alone, batched, chunked, preempted and prefix-cached', async () => {
    const shape = fc.record({
      length: fc.integer({ min: 1, max: 24 }),
      prefixSeed: fc.integer({ min: 0, max: 2 }),
      maxTokens: fc.integer({ min: 1, max: 16 }),
      temperature: fc.constantFrom(0, 1),
      seed: fc.nat(3),
      repetitionPenalty: fc.constantFrom(1, 1.5),
      logprobs: fc.constantFrom(undefined, 0, 2),
      promptLogprobs: fc.constantFrom(undefined, 0, 1),
      minTokens: fc.constantFrom(0, 1),
    });
    const machine = fc.record({
      numBlocks: fc.integer({ min: 10, max: 16 }),
      maxNumSeqs: fc.integer({ min: 2, max: 8 }),
      maxNumBatchedTokens: fc.integer({ min: 8, max: 40 }),
      enablePrefixCaching: fc.boolean(),
    });
    let numPreemptions = 0;
    let numHits = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(shape, { minLength: 2, maxLength: 8 }), machine, async (shapes, options) => {
        const requests = shapes.map(({ length, prefixSeed, ...params }, i) => request(`r${String(i)}`, length, params, prefixSeed));
        const together = bench(options, { limits: { maxLogitRows: 8 } });
        await run(together, ...requests);
        for (const each of requests) {
          const alone = await run(bench(), each);
          expect(seen(together.events, each.id)).to.deep.equal(seen(alone, each.id));
        }
        const stats = together.engine.stats();
        expect(stats.kvCacheUsage).to.equal(0);
        numPreemptions += stats.numPreemptions;
        numHits += stats.prefixCacheHits;
      }),
      { numRuns: 100, seed: 20261126 },
    );
    expect(numPreemptions, 'preemptions that happened').to.be.greaterThan(50);
    expect(numHits, 'tokens that were reused').to.be.greaterThan(100);
  });
});
