import type { KvCacheDType, RoutingMethod } from '@moe-server/core';
import { expect } from 'chai';
import type { Command, KvCacheLayer } from '../../src/device/commands.js';
import type { CommandBench } from './command-bench.js';
import { floatsIn, intsIn } from './command-bench.js';
import type { Prepared } from './cpu-paths.js';
import { Random, bytesIn, describeCpuPaths, expectClose, runOnBoth } from './cpu-paths.js';

const numTokens = 7;
const limits = { maxNumTokens: 64, maxNumSeqs: 4, maxLogitRows: 8, maxBlocksPerSeq: 40, maxAdjustments: 64 };

/** Commands, by what they do; each is run on both devices from the same random memory. */
const cases: Readonly<Record<string, (bench: CommandBench, random: Random) => Prepared>> = {
  'embed takes rows of the table': (bench, random) => {
    const table = bench.device.allocate(2 * 50 * 40, 'table');
    new Uint16Array(table.buffer).forEach((_, i, all) => (all[i] = random.integer(0x7f00)));
    bench.setCounts({ tokens: numTokens });
    for (let t = 0; t < numTokens; t++) bench.inputs.tokenIds[t] = random.integer(50);
    const output = bench.floats([], limits.maxNumTokens * 40);
    return { commands: [{ op: 'embed', table, vocabSize: 50, width: 40, output }], outputs: [output] };
  },
  'rmsNorm with a width that is no multiple of 16': (bench, random) => {
    bench.setCounts({ tokens: numTokens });
    const width = 209;
    const output = bench.floats([], limits.maxNumTokens * width);
    const input = bench.floats(random.floats(limits.maxNumTokens * width, 3));
    const weight = bench.floats(random.floats(width));
    return { commands: [{ op: 'rmsNorm', rows: 'tokens', width, eps: 1e-6, input, weight, output }], outputs: [output] };
  },
  'rmsNorm over many rows': (bench, random) => {
    bench.setCounts({ tokens: 64 });
    const width = 768;
    const input = bench.floats(random.floats(64 * width, 3));
    const weight = bench.floats(random.floats(width));
    return { commands: [{ op: 'rmsNorm', rows: 'tokens', width, eps: 1e-5, input, weight, output: input }], outputs: [input] };
  },
  'headRmsNorm of the middle columns': (bench, random) => {
    bench.setCounts({ tokens: numTokens });
    const tensor = bench.floats(random.floats(limits.maxNumTokens * 200));
    const weight = bench.floats(random.floats(32));
    const command: Command = { op: 'headRmsNorm', tensor, rowWidth: 200, columnOffset: 20, numHeads: 5, headDim: 32, eps: 1e-6, weight };
    return { commands: [command], outputs: [tensor] };
  },
  'rope in rotate-half form': (bench, random) => rope(bench, random, 32, false),
  'rope of a part of the head': (bench, random) => rope(bench, random, 20, false),
  'rope of interleaved pairs': (bench, random) => rope(bench, random, 24, true),
  'silu gate': (bench, random) => gate(bench, random, { type: 'silu' }),
  'clamped swiglu gate': (bench, random) => gate(bench, random, { type: 'swiglu', alpha: 1.702, limit: 7 }),
  'gatherRows takes rows in the order of logitRows': (bench, random) => {
    bench.setCounts({ tokens: numTokens, logitRows: 3 });
    bench.inputs.logitRows.set([6, 0, 3]);
    const input = bench.floats(random.floats(limits.maxNumTokens * 33));
    const output = bench.floats([], limits.maxLogitRows * 33);
    return { commands: [{ op: 'gatherRows', width: 33, input, output }], outputs: [output] };
  },
};

function rope(bench: CommandBench, random: Random, rotaryDim: number, interleaved: boolean): Prepared {
  bench.setCounts({ tokens: numTokens });
  for (let t = 0; t < numTokens; t++) bench.inputs.positions[t] = random.integer(30);
  const tensor = bench.floats(random.floats(limits.maxNumTokens * 160));
  const table = bench.floats(random.floats(30 * rotaryDim));
  const command: Command = {
    op: 'rope',
    tensor,
    rowWidth: 160,
    columnOffset: 16,
    numHeads: 4,
    headDim: 32,
    rotaryDim,
    interleaved,
    table,
    maxPositions: 30,
  };
  return { commands: [command], outputs: [tensor] };
}

function gate(
  bench: CommandBench,
  random: Random,
  activation: { type: 'silu' } | { type: 'swiglu'; alpha: number; limit: number },
): Prepared {
  bench.setCounts({ tokens: 64 });
  const width = 97;
  const input = bench.floats(random.floats(64 * 2 * width, 12));
  const output = bench.floats([], 64 * width);
  return { commands: [{ op: 'gatedActivation', rows: 'tokens', activation, width, input, output }], outputs: [output] };
}

const softmax: RoutingMethod = {
  score: 'softmax',
  order: 'score-first',
  renormalize: true,
  numGroups: 1,
  topkGroups: 1,
  hasCorrectionBias: false,
  hasRouterBias: false,
  scalingFactor: 1,
};
const routingMethods: Readonly<Record<string, RoutingMethod>> = {
  'softmax, renormalized': softmax,
  'softmax without renormalizing': { ...softmax, renormalize: false },
  'softmax over the chosen, with a router bias': { ...softmax, order: 'topk-first', renormalize: false, hasRouterBias: true },
  'sigmoid in groups, with a correction bias': {
    ...softmax,
    score: 'sigmoid',
    numGroups: 4,
    topkGroups: 2,
    hasCorrectionBias: true,
    scalingFactor: 2.5,
  },
};

/** Two sequences: one that decodes after 300 positions, one that brings `numTokens - 1` tokens after 20. */
function attention(bench: CommandBench, random: Random, dtype: KvCacheDType, slidingWindow: number, hasSinks: boolean): Prepared {
  const headDim = 32;
  const numKvHeads = 2;
  const numHeads = 6;
  const blockSize = 16;
  const numBlocks = 100;
  const elementBytes = dtype === 'bf16' ? 2 : 1;
  const cacheBytes = numBlocks * numKvHeads * blockSize * headDim * elementBytes;
  const cache: KvCacheLayer = {
    dtype,
    keys: bench.device.allocate(cacheBytes, 'keys'),
    values: bench.device.allocate(cacheBytes, 'values'),
    numBlocks,
    blockSize,
    numKvHeads,
    headDim,
    keyScale: dtype === 'bf16' ? 1 : 0.013,
    valueScale: dtype === 'bf16' ? 1 : 0.02,
  };
  for (const buffer of [cache.keys, cache.values]) {
    if (dtype === 'bf16')
      new Uint16Array(buffer.buffer).forEach((_, i, all) => (all[i] = 0x3f00 + random.integer(0x100) + 0x8000 * random.integer(2)));
    else new Uint8Array(buffer.buffer).forEach((_, i, all) => (all[i] = random.integer(0x70) + 0x80 * random.integer(2)));
  }
  const contexts = [301, 20 + numTokens - 1];
  const { inputs } = bench;
  bench.setCounts({ tokens: numTokens, sequences: 2 });
  inputs.queryStarts.set([0, 1, numTokens]);
  inputs.contextLengths.set(contexts);
  for (let s = 0; s < 2; s++) {
    for (let b = 0; b < limits.maxBlocksPerSeq; b++) inputs.blockTables[s * limits.maxBlocksPerSeq + b] = (b * 7 + s * 31) % numBlocks;
  }
  for (let t = 0; t < numTokens; t++) {
    const sequence = t === 0 ? 0 : 1;
    const position = t === 0 ? 300 : 20 + t - 1;
    inputs.positions[t] = position;
    inputs.slots[t] =
      inputs.blockTables[sequence * limits.maxBlocksPerSeq + Math.floor(position / blockSize)]! * blockSize + (position % blockSize);
  }
  const rowWidth = (numHeads + 2 * numKvHeads) * headDim + 8;
  const tensor = bench.floats(random.floats(limits.maxNumTokens * rowWidth));
  const output = bench.floats([], limits.maxNumTokens * numHeads * headDim);
  const sinks = bench.floats(random.floats(numHeads, 4));
  const commands: Command[] = [
    { op: 'kvStore', tensor, rowWidth, keyOffset: numHeads * headDim, valueOffset: (numHeads + numKvHeads) * headDim, cache },
    {
      op: 'attention',
      queries: tensor,
      rowWidth,
      queryOffset: 0,
      numHeads,
      scale: 0.4,
      cache,
      slidingWindow,
      sinks: hasSinks ? sinks : undefined,
      output,
    },
  ];
  return { commands, outputs: [output, cache.keys, cache.values] };
}

describeCpuPaths('operators of the CPU device', (createDevice, path) => {
  for (const [title, prepare] of Object.entries(cases)) {
    it(`${title}, as the TypeScript device`, async () => {
      const { expected, actual } = await runOnBoth(createDevice(), limits, (bench) => prepare(bench, new Random(7)));
      for (const [i, buffer] of expected.entries()) expectClose(floatsIn(actual[i] ?? buffer), floatsIn(buffer), 2e-6);
    });
  }

  for (const [title, method] of Object.entries(routingMethods)) {
    it(`routes by ${title}`, async () => {
      const device = createDevice();
      const { expected, actual } = await runOnBoth(device, limits, (bench) => {
        const random = new Random(11);
        bench.setCounts({ tokens: numTokens });
        const hiddenSize = 70;
        const numExperts = 24;
        const topkIds = bench.ints([], limits.maxNumTokens * 5);
        const topkWeights = bench.floats([], limits.maxNumTokens * 5);
        const topkSlots = bench.ints([], limits.maxNumTokens * 5);
        const slots = bench.ints(Array.from({ length: numExperts }, (_, expert) => (expert % 2 === 0 ? expert / 2 : -1)));
        const route: Command = {
          op: 'route',
          hiddenSize,
          numExperts,
          topK: 5,
          method,
          input: bench.floats(random.floats(limits.maxNumTokens * hiddenSize)),
          weight: bench.floats(random.floats(numExperts * hiddenSize)),
          bias: method.hasRouterBias ? bench.floats(random.floats(numExperts)) : undefined,
          correctionBias: method.hasCorrectionBias ? bench.floats(random.floats(numExperts)) : undefined,
          topkIds,
          topkWeights,
        };
        return {
          commands: [route, { op: 'mapSlots', topK: 5, numExperts, topkIds, slots, topkSlots }],
          outputs: [topkIds, topkSlots, topkWeights],
        };
      });
      const [ids, slots, weights] = actual as [(typeof actual)[0], (typeof actual)[0], (typeof actual)[0]];
      expect([...intsIn(ids)]).to.deep.equal([...intsIn(expected[0] ?? ids)]);
      expect([...intsIn(slots)]).to.deep.equal([...intsIn(expected[1] ?? slots)]);
      expectClose(floatsIn(weights), floatsIn(expected[2] ?? weights), 3e-6);
      expect(device.numExpertsChosen).to.equal(new Set(intsIn(ids).subarray(0, 5 * numTokens)).size);
    });
  }

  for (const dtype of ['bf16', 'f8e4m3'] as const) {
    for (const slidingWindow of [0, 33]) {
      for (const hasSinks of [false, true]) {
        it(`attends over a ${dtype} cache, window ${String(slidingWindow)}, ${hasSinks ? 'with' : 'without'} sinks`, async () => {
          const { expected, actual } = await runOnBoth(createDevice(), limits, (bench) =>
            attention(bench, new Random(3), dtype, slidingWindow, hasSinks),
          );
          // Softmax weights are float32, or rounded to bf16 (docs/numerics.md).
          expectClose(floatsIn(actual[0]!), floatsIn(expected[0]!), path === 'avx512 and bf16' ? 2 ** -8 : 2e-5);
          for (const i of [1, 2]) expect(bytesIn(actual[i]!)).to.deep.equal(bytesIn(expected[i]!));
        });
      }
    }
  }

  it('stores every e4m3 value, ties, subnormals, overflow and NaN as the TypeScript device', async () => {
    const { expected, actual } = await runOnBoth(createDevice(), limits, (bench) => {
      const random = new Random(5);
      bench.setCounts({ tokens: limits.maxNumTokens });
      const cache: KvCacheLayer = {
        dtype: 'f8e4m3',
        keys: bench.device.allocate(64 * 64, 'keys'),
        values: bench.device.allocate(64 * 64, 'values'),
        numBlocks: 4,
        blockSize: 16,
        numKvHeads: 1,
        headDim: 64,
        keyScale: 1,
        valueScale: 0.37,
      };
      for (let t = 0; t < 64; t++) bench.inputs.slots[t] = t;
      const values = Float32Array.from({ length: 64 * 128 }, (_, i) => {
        if (i % 97 === 0) return [NaN, Infinity, -Infinity, 448, 464, 465, -0][(i / 97) % 7]!;
        const exact = random.next() * 2 ** (random.integer(22) - 12);
        // Halfway between two neighbours with four mantissa bits, and multiples of half the smallest subnormal.
        if (i % 3 === 0) return Number(exact.toExponential(0).replace(/^(-?)\d/, '$11')) * 1.0625;
        return i % 3 === 1 ? Math.round(exact * 1024) / 1024 : exact;
      });
      const tensor = bench.floats(values);
      return {
        commands: [{ op: 'kvStore', tensor, rowWidth: 128, keyOffset: 0, valueOffset: 64, cache }],
        outputs: [cache.keys, cache.values],
      };
    });
    for (const i of [0, 1]) expect(bytesIn(actual[i]!)).to.deep.equal(bytesIn(expected[i]!));
  });
});
