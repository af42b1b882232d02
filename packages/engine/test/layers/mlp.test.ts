import { expect } from 'chai';
import { ActivationBuffers } from '../../src/layers/activation-buffers.js';
import { DenseMlp } from '../../src/layers/dense-mlp.js';
import { Moe } from '../../src/layers/moe.js';
import { StepEncoder } from '../../src/layers/step-encoder.js';
import { CommandBench, floatsIn } from '../device/command-bench.js';
import { plainWeights, scalingExperts } from './plain-weights.js';

function encoderOf(bench: CommandBench): StepEncoder {
  const { limits } = bench.inputs.layout;
  return new StepEncoder(new ActivationBuffers(bench.device, limits), { tokens: limits.maxNumTokens, logitRows: limits.maxLogitRows });
}

describe('DenseMlp', () => {
  it('adds down(silu(gate) * up) to the residual stream', async () => {
    const weights = plainWeights({
      'mlp.gate_proj': [
        [1, 0],
        [0, 2],
      ],
      'mlp.up_proj': [
        [3, 0],
        [0, 1],
      ],
      'mlp.down_proj': [
        [1, 1],
        [0, 1],
      ],
    });
    const bench = new CommandBench({ maxNumTokens: 1 });
    bench.setCounts({ tokens: 1 });
    const residual = bench.floats([10, 20]);
    const encoder = encoderOf(bench);
    (await DenseMlp.load(weights, 'mlp')).encode(encoder, bench.floats([1, -1]), residual);
    await bench.run(...encoder.finish().commands);
    const silu = (x: number): number => x / (1 + Math.exp(-x));
    const [first, second] = [silu(1) * 3, silu(-2) * -1];
    expect(floatsIn(residual)[0]).to.be.closeTo(10 + first + second, 1e-5);
    expect(floatsIn(residual)[1]).to.be.closeTo(20 + second, 1e-5);
  });
});

describe('Moe', () => {
  it('adds the experts of every group to the residual stream, each by its weight', async () => {
    const shape = { numExperts: 4, hiddenSize: 2, topK: 2 };
    const even = scalingExperts({ ...shape, name: 'experts#a', experts: [0, 2] }, [1, 100]);
    const odd = scalingExperts({ ...shape, name: 'experts#b', experts: [1, 3] }, [10, 1000]);
    const bound = [even, odd].map(({ group, kernel }) => ({ group, kernels: [{ kernel, tokens: { min: 1, max: 8 } }] }));
    const weights = {
      ...plainWeights({
        gate: [
          [0, 0],
          [5, 0],
          [5, 0],
          [0, 5],
        ],
      }),
      experts: () => Promise.resolve(bound),
    };
    const bench = new CommandBench({ maxNumTokens: 2 });
    bench.setCounts({ tokens: 2 });
    const residual = bench.floats([0, 0, 7, 7]);
    const encoder = encoderOf(bench);
    // Token 0 goes to experts 1 and 2 in equal parts; token 1 to expert 3, and with e^-5 of that to expert 0.
    (await Moe.load(weights, { router: 'gate', experts: 'experts' })).encode(encoder, bench.floats([1, 0, 0, 1]), residual);
    await bench.run(...encoder.finish().commands);
    const [a, b, c, d] = floatsIn(residual);
    expect(a).to.be.closeTo(0.5 * 10 + 0.5 * 100, 1e-4);
    expect(b).to.equal(0);
    expect(c).to.equal(7);
    expect(d).to.be.closeTo(7 + (1000 + Math.exp(-5)) / (1 + Math.exp(-5)), 1e-3);
  });

  it('passes ids as slots where one group has all experts', async () => {
    const all = scalingExperts({ name: 'experts', experts: [0, 1], numExperts: 2, hiddenSize: 1, topK: 1 }, [2, 3]);
    const bound = [{ group: all.group, kernels: [{ kernel: all.kernel, tokens: { min: 1, max: 8 } }] }];
    const weights = { ...plainWeights({ gate: [[0], [1]] }), experts: () => Promise.resolve(bound) };
    const bench = new CommandBench();
    const encoder = encoderOf(bench);
    (await Moe.load(weights, { router: 'gate', experts: 'experts' })).encode(encoder, bench.floats([1], 8), bench.floats([0], 8));
    expect(encoder.finish().commands.map(({ op }) => op)).to.deep.equal(['route', 'experts']);
  });
});
