import type { KvCacheDType } from '@moe-server/core';
import { expect } from 'chai';
import type { AttentionCommand, KvCacheLayer, KvStoreCommand } from '../../../src/device/commands.js';
import { CommandBench, floatsIn } from '../command-bench.js';

/** One query head, one key/value head of two columns; a row is [query, key, value]. */
const headDim = 2;
const rowWidth = 3 * headDim;
const blockSize = 2;

interface Setup {
  bench: CommandBench;
  store: KvStoreCommand;
  attend: AttentionCommand;
}

function setUp(
  rows: number[][],
  options: { dtype?: KvCacheDType; keyScale?: number; slidingWindow?: number; sinks?: number[] } = {},
): Setup {
  const bench = new CommandBench({ maxNumTokens: 4, maxBlocksPerSeq: 2 });
  const { dtype = 'bf16', keyScale = 1, slidingWindow = 0, sinks } = options;
  const bytes = 4 * blockSize * headDim * (dtype === 'bf16' ? 2 : 1);
  const cache: KvCacheLayer = {
    dtype,
    keys: bench.device.allocate(bytes, 'keys'),
    values: bench.device.allocate(bytes, 'values'),
    numBlocks: 4,
    blockSize,
    numKvHeads: 1,
    headDim,
    keyScale,
    valueScale: 1,
  };
  const tensor = bench.floats(rows.flat(), 4 * rowWidth);
  const store: KvStoreCommand = { op: 'kvStore', tensor, rowWidth, keyOffset: headDim, valueOffset: 2 * headDim, cache };
  const attend: AttentionCommand = {
    op: 'attention',
    queries: tensor,
    rowWidth,
    queryOffset: 0,
    numHeads: 1,
    scale: 1,
    cache,
    slidingWindow,
    sinks: sinks === undefined ? undefined : bench.floats(sinks),
    output: bench.floats([], 4 * headDim),
  };
  // One sequence of three tokens in blocks 3 and 1.
  bench.setCounts({ tokens: 3, sequences: 1 });
  bench.inputs.positions.set([0, 1, 2]);
  bench.inputs.slots.set([6, 7, 2]);
  bench.inputs.queryStarts.set([0, 3]);
  bench.inputs.contextLengths.set([3]);
  bench.inputs.blockTables.set([3, 1]);
  return { bench, store, attend };
}

/** Softmax-weighted mean of `values`. */
function mean(scores: number[], values: number[], sink?: number): number {
  const weights = scores.map(Math.exp);
  const denominator = weights.reduce((sum, weight) => sum + weight, sink === undefined ? 0 : Math.exp(sink));
  return weights.reduce((sum, weight, i) => sum + weight * (values[i] ?? 0), 0) / denominator;
}

describe('attention on the TypeScript device', () => {
  const rows = [
    [1, 0, 0, 0, 1, 0],
    [1, 0, 1, 0, 2, 0],
    [1, 0, 2, 0, 4, 8],
  ];

  it('looks at all positions up to its own, through the block table', async () => {
    const { bench, store, attend } = setUp(rows);
    await bench.run(store, attend);
    const output = floatsIn(attend.output);
    expect(output[0]).to.equal(1);
    expect(output[2]).to.be.closeTo(mean([0, 1], [1, 2]), 1e-6);
    expect(output[4]).to.be.closeTo(mean([0, 1, 2], [1, 2, 4]), 1e-6);
    expect(output[5]).to.be.closeTo(mean([0, 1, 2], [0, 0, 8]), 1e-6);
  });

  it('forgets what lies before the sliding window', async () => {
    const { bench, store, attend } = setUp(rows, { slidingWindow: 2 });
    await bench.run(store, attend);
    expect(floatsIn(attend.output)[4]).to.be.closeTo(mean([1, 2], [2, 4]), 1e-6);
  });

  it('adds sinks to the denominator alone', async () => {
    const { bench, store, attend } = setUp(rows, { sinks: [3] });
    await bench.run(store, attend);
    expect(floatsIn(attend.output)[0]).to.be.closeTo(mean([0], [1], 3), 1e-6);
  });

  it('reads keys and values as the cache stores them', async () => {
    const { bench, store, attend } = setUp([[1, 0, 0, 0, 1.0001, 0]]);
    bench.setCounts({ tokens: 1, sequences: 1 });
    bench.inputs.queryStarts.set([0, 1]);
    await bench.run(store, attend);
    expect(floatsIn(attend.output)[0]).to.equal(1);
  });

  it('stores FP8 over its scale, clamped, and multiplies when reading', async () => {
    const { bench, store, attend } = setUp(
      [
        [1, 0, 0, 0, 1.1, 0],
        [1, 0, 1.15, 0, 1000, 0],
      ],
      { dtype: 'f8e4m3', keyScale: 0.5 },
    );
    bench.setCounts({ tokens: 2, sequences: 1 });
    bench.inputs.queryStarts.set([0, 2]);
    await bench.run(store, attend);
    const output = floatsIn(attend.output);
    expect(output[0]).to.equal(1.125);
    // 1.15 / 0.5 = 2.3 is stored as 2.25, and 1000 as 448.
    expect(output[2]).to.be.closeTo(mean([0, 1.125], [1.125, 448]), 1e-3);
  });
});
