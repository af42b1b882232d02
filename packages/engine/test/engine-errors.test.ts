import { expect } from 'chai';
import { MoeError } from '@moe-server/core';
import { Engine } from '../src/engine.js';
import { prompt, sampling } from './fake-runner.js';
import { bench, blockSize, ending, request, run, tokenIds } from './engine-bench.js';

describe('Engine', () => {
  describe('errors', () => {
    it('ends only the request for whose sake a step fails; the others get the tokens that they would have got', async () => {
      const others = [request('b', 4, {}, 2), request('c', 4, {}, 3)];
      const undisturbed = bench();
      await run(undisturbed, ...others);
      const a = bench(
        {},
        {
          script: (context, { counter }) => {
            if (context[0] === prompt(1, 1)[0] && counter === 2) throw new MoeError('MOE_DEVICE_KERNEL', 'kernel x failed');
            return undefined;
          },
        },
      );
      await run(a, request('a', 4), ...others);
      expect(ending(a.events, 'a')).to.equal('MOE_DEVICE_KERNEL');
      for (const id of ['b', 'c']) {
        expect(ending(a.events, id)).to.equal('length');
        expect(tokenIds(a.events, id)).to.deep.equal(tokenIds(undisturbed.events, id));
      }
      expect(a.engine.stats()).to.include({ numFailedSteps: 1, kvCacheUsage: 0 });
    });

    it('costs nobody a request when a step fails once', async () => {
      const a = bench({ maxNumSeqs: 2 });
      a.runner.beforeStep = (step) => {
        if (step === 1) throw new MoeError('MOE_DEVICE_KERNEL', 'kernel x failed');
      };
      await run(a, request('a', 4), request('b', 4, {}, 2), request('c', 4, {}, 3));
      for (const id of ['a', 'b', 'c']) expect(ending(a.events, id)).to.equal('length');
      expect(a.engine.stats()).to.include({ numFailedSteps: 1, kvCacheUsage: 0 });
    });

    it('ends every request of a step whose sequences all fail', async () => {
      const a = bench();
      a.runner.beforeStep = () => {
        throw new MoeError('MOE_DEVICE_KERNEL', 'kernel x failed');
      };
      await run(a, request('a', 4), request('b', 4, {}, 2));
      for (const id of ['a', 'b']) expect(ending(a.events, id)).to.equal('MOE_DEVICE_KERNEL');
      expect(a.engine.stats().kvCacheUsage).to.equal(0);
    });

    it('names what else a runner throws an internal error', async () => {
      const a = bench();
      a.runner.beforeStep = () => {
        throw new TypeError('x is not a function');
      };
      const [event] = await run(a, request('a', 4));
      expect(event?.type === 'error' && event.error.code).to.equal('MOE_INTERNAL');
      expect(event?.type === 'error' && event.error.message).to.contain('x is not a function');
    });

    it('fails only the request whose logits are not numbers', async () => {
      const a = bench({}, { script: (context, { counter }) => (context[0] === prompt(1, 1)[0] && counter === 2 ? -1 : undefined) });
      await run(a, request('a', 4), request('b', 4, {}, 2));
      expect(ending(a.events, 'a')).to.equal('MOE_DEVICE_KERNEL');
      expect(tokenIds(a.events, 'a')).to.have.length(2);
      expect(ending(a.events, 'b')).to.equal('length');
      expect(a.engine.stats().numCorruptedRequests).to.equal(1);
    });

    it('says so when a request masks every token', async () => {
      const a = bench({ eosTokenIds: [] }, { vocabSize: 2, script: () => -1 });
      const [event] = await run(a, { id: 'a', promptTokenIds: [1], sampling: sampling({ minTokens: 1, stopTokenIds: [0, 1] }) });
      expect(event?.type === 'error' && event.error.code).to.equal('MOE_REQUEST_INVALID');
    });

    it('does not trust a runner that returns too few rows', async () => {
      const a = bench();
      const engine = new Engine({
        runner: { limits: a.runner.limits, vocabSize: 1000, execute: async () => await Promise.resolve({ rows: [[]] }) },
        ...{ numBlocks: 8, blockSize, maxModelLen: 32, eosTokenIds: [] },
      });
      engine.onEvent((event) => a.events.push(event));
      const [event] = await run({ ...a, engine }, request('a', 4));
      expect(event?.type === 'error' && event.error.message).to.contain('0 of 1 logit rows');
    });

    it('reports a request that can never fit as an error of its own', async () => {
      const a = bench({ numBlocks: 3 });
      await run(a, request('a', 20), request('b', 4, { maxTokens: 2 }, 2));
      expect([ending(a.events, 'a'), ending(a.events, 'b')]).to.deep.equal(['MOE_CAPACITY_MEMORY', 'length']);
    });

    it('ends the loop when a listener throws', async () => {
      const a = bench();
      a.engine.onEvent(() => {
        throw new Error('listener');
      });
      a.engine.addRequest(request('a', 4));
      const outcome = await a.engine.drain().then(
        () => 'resolved',
        (error: unknown) => (error as Error).message,
      );
      expect(outcome).to.equal('listener');
    });
  });
});
