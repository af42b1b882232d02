import type { RoutingMethod } from '@moe-server/core';
import { expect } from 'chai';
import { chooseExperts } from '../../../src/device/typescript/routing.js';
import { CommandBench, floatsIn, intsIn } from '../command-bench.js';

const softmaxTopk: RoutingMethod = {
  score: 'softmax',
  order: 'score-first',
  renormalize: true,
  numGroups: 1,
  topkGroups: 1,
  hasCorrectionBias: false,
  hasRouterBias: false,
  scalingFactor: 1,
};

describe('chooseExperts', () => {
  const logits = Float32Array.of(1, 3, 2, 0);
  const exponentials = [...logits].map(Math.exp);
  const sum = exponentials.reduce((total, value) => total + value, 0);

  it('scores all, chooses the best and renormalizes', () => {
    const [first, second] = chooseExperts(logits, softmaxTopk, 2, undefined);
    expect(first?.id).to.equal(1);
    expect(second?.id).to.equal(2);
    expect(first?.weight).to.be.closeTo(Math.exp(3) / (Math.exp(3) + Math.exp(2)), 1e-12);
  });

  it('leaves the scores as they are without renormalization', () => {
    const [first] = chooseExperts(logits, { ...softmaxTopk, renormalize: false }, 2, undefined);
    expect(first?.weight).to.be.closeTo(Math.exp(3) / sum, 1e-12);
  });

  it('scores only the chosen when top-k comes first', () => {
    const chosen = chooseExperts(logits, { ...softmaxTopk, order: 'topk-first', renormalize: false }, 2, undefined);
    expect(chosen.map(({ id }) => id)).to.deep.equal([1, 2]);
    expect(chosen[1]?.weight).to.be.closeTo(1 / (1 + Math.E), 1e-12);
  });

  it('gives ties to the lower id', () => {
    expect(chooseExperts(Float32Array.of(1, 2, 2, 2), softmaxTopk, 2, undefined).map(({ id }) => id)).to.deep.equal([1, 2]);
  });

  it('chooses with the correction bias and weighs without it', () => {
    const sigmoid: RoutingMethod = { ...softmaxTopk, score: 'sigmoid', hasCorrectionBias: true, scalingFactor: 2 };
    const chosen = chooseExperts(logits, sigmoid, 2, Float32Array.of(0, 0, 0, 10));
    const scores = [3, 0].map((logit) => 1 / (1 + Math.exp(-logit)));
    expect(chosen.map(({ id }) => id)).to.deep.equal([1, 3]);
    expect(chosen[0]?.weight).to.be.closeTo((2 * (scores[0] ?? 0)) / ((scores[0] ?? 0) + (scores[1] ?? 0)), 1e-12);
  });

  it('chooses within the groups whose two best experts are worth most', () => {
    const grouped: RoutingMethod = { ...softmaxTopk, score: 'sigmoid', numGroups: 2, topkGroups: 1 };
    expect(chooseExperts(Float32Array.of(9, -9, 1, 2), grouped, 2, undefined).map(({ id }) => id)).to.deep.equal([3, 2]);
  });
});

describe('route and mapSlots on the TypeScript device', () => {
  it('project hidden states, add the router bias and translate ids to slots', async () => {
    const bench = new CommandBench({ maxNumTokens: 2 });
    bench.setCounts({ tokens: 2 });
    const topkIds = bench.ints([], 4);
    const topkWeights = bench.floats([], 4);
    const topkSlots = bench.ints([], 4);
    await bench.run(
      {
        op: 'route',
        hiddenSize: 2,
        numExperts: 3,
        topK: 2,
        method: { ...softmaxTopk, hasRouterBias: true },
        input: bench.floats([1, 0, 0, 1]),
        weight: bench.floats([1, 0, 0, 5, 2, 0]),
        bias: bench.floats([0, 0, -9]),
        correctionBias: undefined,
        topkIds,
        topkWeights,
      },
      { op: 'mapSlots', topK: 2, numExperts: 3, topkIds, slots: bench.ints([-1, 0, 1]), topkSlots },
    );
    expect([...intsIn(topkIds)]).to.deep.equal([0, 1, 1, 0]);
    expect(bench.device.numExpertsChosen).to.equal(2);
    expect([...intsIn(topkSlots)]).to.deep.equal([-1, 0, 0, -1]);
    expect(floatsIn(topkWeights)[0]).to.be.closeTo(1 / (1 + Math.exp(-1)), 1e-6);
  });
});
