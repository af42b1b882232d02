import { fixtureFolders } from '@moe-server/test-kit';
import { Engine, kvBlockSize, supportedArchitectures } from '@moe-server/engine';
import type { EngineEvent, EngineOptions, EngineStats, GenerationRequest, SamplingParams } from '@moe-server/engine';
import { expect } from 'chai';
import { Fixture } from './fixture.js';
import { RunningModel } from './running-model.js';

const supported = fixtureFolders()
  .map((folder) => new Fixture(folder))
  .filter(({ architecture }) => supportedArchitectures.some((name) => name === architecture));

const sampling: SamplingParams = {
  maxTokens: 24,
  minTokens: 24,
  temperature: 0.8,
  topK: 0,
  topP: 0.95,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: [[300, 2]],
  seed: 11,
  logprobs: 3,
  promptLogprobs: undefined,
  stopTokenIds: [],
  ignoreEos: false,
};

/** What a request got: prompt scores, tokens, and their log-probabilities as the float32 numbers they are. */
type Result = readonly unknown[];

describe('same bits through the engine', function () {
  this.timeout(120_000);
  for (const fixture of supported) {
    for (const numerics of ['wider', 'same'] as const) {
      describe(`${fixture.name}, ${numerics}`, () => {
        let model: RunningModel;
        let alone: Map<string, Result>;
        const ids = ['p130', 'p33', 'p7', 'p1'];
        const plain = ids.map((id) => request(id, {}));
        const scored = ids.map((id) => request(id, { promptLogprobs: 2 }, `${id}, scored`));

        function request(id: string, changes: Partial<SamplingParams>, name = id): GenerationRequest {
          return { id: name, promptTokenIds: fixture.prompt(id), sampling: { ...sampling, ...changes } };
        }

        /** Serves requests on a cache that nobody used before. */
        async function serve(
          requests: readonly GenerationRequest[],
          options: Partial<EngineOptions> = {},
        ): Promise<{ results: Map<string, Result>; stats: EngineStats }> {
          const { runner } = model;
          const engine = new Engine({
            runner,
            numBlocks: 64,
            blockSize: kvBlockSize,
            maxModelLen: 256,
            eosTokenIds: [595, 593],
            ...options,
          });
          const results = new Map(requests.map(({ id }): [string, unknown[]] => [id, []]));
          engine.onEvent((event) => results.get(event.requestId)?.push(visible(event)));
          for (const each of requests) engine.addRequest(each);
          await engine.drain();
          return { results, stats: engine.stats() };
        }

        before(async () => {
          model = await RunningModel.open(fixture.folder, { device: 'cpu', numerics });
          alone = new Map();
          for (const each of [...plain, ...scored]) alone.set(each.id, (await serve([each])).results.get(each.id) ?? []);
        });

        after(() => {
          model.close();
        });

        function expectAsAlone(results: ReadonlyMap<string, Result>): void {
          for (const [id, result] of results) expect(result, id).to.deep.equal(alone.get(id));
        }

        it('gives every token a log-probability', () => {
          const [first] = (alone.get('p130') ?? []) as { type: string; token: { logprob: number } }[];
          expect(first?.token.logprob).to.be.a('number').and.to.be.lessThan(0);
          expect(alone.get('p130')).to.have.lengthOf(25);
          expect(alone.get('p130, scored')).to.have.lengthOf(26);
        });

        it('in a batch', async () => {
          const { results, stats } = await serve([...plain, ...scored]);
          expectAsAlone(results);
          expect(stats.numSteps).to.be.lessThan(60);
        });

        for (const maxNumBatchedTokens of [8, 17]) {
          it(`in chunks that fill steps of ${String(maxNumBatchedTokens)} tokens`, async () => {
            const { results } = await serve([...scored, ...plain], { maxNumBatchedTokens });
            expectAsAlone(results);
          });
        }

        it('preempted and computed again', async () => {
          const { results, stats } = await serve([...plain, ...scored], { numBlocks: 13, enablePrefixCaching: false });
          expectAsAlone(results);
          expect(stats.numPreemptions).to.be.greaterThan(0);
        });

        it('preempted, with what the prefix cache still has', async () => {
          const { results, stats } = await serve([...plain, ...scored], { numBlocks: 13 });
          expectAsAlone(results);
          expect(stats.numPreemptions).to.be.greaterThan(0);
        });

        it('on blocks that an earlier request filled', async () => {
          const first = request('p130', { maxTokens: 1, minTokens: 0 }, 'first');
          const { results, stats } = await serve([first, ...plain], { maxNumSeqs: 1 });
          results.delete('first');
          expectAsAlone(results);
          expect(stats.prefixCacheHits).to.equal(128);
        });
      });
    }
  }
});

/** Without what tells of the cache and of the engine's id. */
function visible(event: EngineEvent): unknown {
  if (event.type === 'finish') return { reason: event.reason, stopTokenId: event.stopTokenId };
  return { ...event, requestId: '' };
}
