import { expect } from 'chai';
import { EngineMetrics } from '../src/metrics.js';
import { Sequence } from '../src/sequence.js';
import { sampling } from './fake-runner.js';

function sequence(): Sequence {
  const request = { id: 'a', promptTokenIds: [1, 2, 3], sampling: sampling({ maxTokens: 9 }) };
  return new Sequence({ request, arrival: 0, randomSeed: 0n, eosTokenIds: [], arrivedAt: 100 });
}

describe('EngineMetrics', () => {
  it('times one request from arrival to end, the queue included in the first token', () => {
    const metrics = new EngineMetrics();
    const a = sequence();
    a.numScheduledTokens = 3;
    metrics.stepStarted([a], 150);
    metrics.tokenGenerated(a, 180);
    metrics.stepStarted([a], 181);
    metrics.tokenGenerated(a, 190);
    metrics.tokenGenerated(a, 205);
    metrics.requestEnded(a, 'stop', 206);
    const delta = metrics.take();
    expect(delta.ttftMs).to.deep.equal([80]);
    expect(delta.itlMs).to.deep.equal([10, 15]);
    expect(delta.stepTokens).to.deep.equal([3, 3]);
    expect(delta.requests).to.deep.equal([
      {
        requestId: 'a',
        reason: 'stop',
        promptTokens: 3,
        completionTokens: 0,
        cachedTokens: 0,
        maxTokens: 9,
        numPreemptions: 0,
        queueMs: 50,
        prefillMs: 30,
        decodeMs: 25,
        ttftMs: 80,
        e2eMs: 106,
      },
    ]);
    expect([metrics.promptTokens, metrics.generationTokens, metrics.numSteps, metrics.finished.stop]).to.deep.equal([3, 3, 2, 1]);
  });

  it('leaves open what a request never reached', () => {
    const metrics = new EngineMetrics();
    metrics.requestEnded(sequence(), 'abort', 120);
    const [timing] = metrics.take().requests;
    expect(timing).to.include({ queueMs: undefined, ttftMs: undefined, decodeMs: undefined, e2eMs: 20 });
  });

  it('hands out every observation once', () => {
    const metrics = new EngineMetrics();
    metrics.tokenGenerated(sequence(), 101);
    expect(metrics.take().ttftMs).to.have.length(1);
    expect(metrics.take().ttftMs).to.have.length(0);
  });

  it('drops observations that nobody takes, and counts them', () => {
    const metrics = new EngineMetrics();
    for (let i = 0; i < 20_000; i++) metrics.stepStarted([], i);
    const delta = metrics.take();
    expect(delta.stepTokens).to.have.length(16_384);
    expect(delta.numDropped).to.equal(20_000 - 16_384);
    expect(metrics.take().numDropped).to.equal(0);
  });
});
