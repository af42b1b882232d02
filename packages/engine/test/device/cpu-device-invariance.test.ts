import { expect } from 'chai';
import type { Command } from '../../src/device/commands.js';
import type { Device } from '../../src/device/device.js';
import type { AttentionShape } from './attention-bench.js';
import { AttentionBench } from './attention-bench.js';
import { CommandBench, floatsIn, intsIn } from './command-bench.js';
import { Random, describeCpuPaths } from './cpu-paths.js';

const numTokens = 600;
const blocks = Array.from({ length: 48 }, (_, i) => (i * 5 + 3) % 128);
const otherBlocks = Array.from({ length: 48 }, (_, i) => (i * 5 + 4 + 60 * 5) % 128);

const shapes: Readonly<Record<string, AttentionShape>> = {
  'bf16, eight query heads to a key': { dtype: 'bf16', numHeads: 16, numKvHeads: 2, headDim: 32, slidingWindow: 0, sinks: undefined },
  'bf16, one query head to a key, a head of 80': {
    dtype: 'bf16',
    numHeads: 2,
    numKvHeads: 2,
    headDim: 80,
    slidingWindow: 0,
    sinks: undefined,
  },
  'bf16, five to a key, window and sinks': {
    dtype: 'bf16',
    numHeads: 5,
    numKvHeads: 1,
    headDim: 48,
    slidingWindow: 100,
    sinks: new Random(1).floats(5, 2),
  },
  'f8e4m3, three to a key': { dtype: 'f8e4m3', numHeads: 6, numKvHeads: 2, headDim: 64, slidingWindow: 0, sinks: undefined },
};

function sameBits(actual: Float32Array, expected: Float32Array): void {
  expect(actual.length).to.equal(expected.length);
  const a = new Uint32Array(actual.buffer, actual.byteOffset, actual.length);
  const b = new Uint32Array(expected.buffer, expected.byteOffset, expected.length);
  const different = a.findIndex((bits, i) => bits !== b[i]);
  expect(different, 'first element that differs').to.equal(-1);
}

/** The outputs of all tokens when the prompt comes in chunks of these sizes (the last repeats). */
async function inChunks(device: Device, shape: AttentionShape, rows: Float32Array, chunks: readonly number[]): Promise<Float32Array> {
  const bench = new AttentionBench(device, shape);
  const { rowWidth } = bench;
  const width = shape.numHeads * shape.headDim;
  const outputs = new Float32Array(numTokens * width);
  for (let context = 0, i = 0; context < numTokens; i++) {
    const end = Math.min(numTokens, context + chunks[Math.min(i, chunks.length - 1)]!);
    const [output] = await bench.step([{ blocks, context, rows: rows.subarray(context * rowWidth, end * rowWidth) }]);
    outputs.set(output!, context * width);
    context = end;
  }
  return outputs;
}

describeCpuPaths('batch invariance of the CPU device', (createDevice) => {
  for (const [title, shape] of Object.entries(shapes)) {
    describe(`attention, ${title}`, () => {
      const rowWidth = (shape.numHeads + 2 * shape.numKvHeads) * shape.headDim;
      const rows = new Random(42).floats(numTokens * rowWidth, 3);

      it('gives the same bits however the prompt is chunked and however many threads work', async () => {
        const whole = await inChunks(createDevice(1), shape, rows, [numTokens]);
        expect(whole.some((value) => value !== 0 && !Number.isNaN(value))).to.equal(true);
        sameBits(await inChunks(createDevice(2), shape, rows, [numTokens]), whole);
        sameBits(await inChunks(createDevice(2), shape, rows, [7, 250, 1, 257, 3, 40]), whole);
        sameBits(await inChunks(createDevice(3), shape, rows, [512, 1]), whole);
      });

      it('gives the same bits alone and beside other sequences, in whatever blocks', async () => {
        const alone = new AttentionBench(createDevice(), shape);
        const context = 520;
        const prompt = rows.subarray(0, context * rowWidth);
        const next = rows.subarray(context * rowWidth, (context + 2) * rowWidth);
        const other = new Random(9).floats(300 * rowWidth, 3);
        const [expected] = await alone
          .step([{ blocks, context: 0, rows: prompt }])
          .then(() => alone.step([{ blocks, context, rows: next }]));
        const together = new AttentionBench(createDevice(), shape);
        await together.step([{ blocks: otherBlocks, context: 0, rows: prompt }]);
        const [, actual] = await together.step([
          {
            blocks: blocks.slice(0, 20).map((block) => (otherBlocks.includes(block) ? 127 - block : block)),
            context: 0,
            rows: other.subarray(0, 19 * rowWidth),
          },
          { blocks: otherBlocks, context, rows: next },
        ]);
        sameBits(actual!, expected!);
      });
    });
  }

  it('routes, normalizes, gates and samples each row as if it were alone', async () => {
    const hiddenSize = 330;
    const numExperts = 40;
    const topK = 6;
    const maxRows = 70;
    const random = new Random(3);
    const rows = random.floats(maxRows * 2 * hiddenSize, 4);
    const weight = random.floats(numExperts * hiddenSize);
    const run = async (device: Device, order: readonly number[]): Promise<Map<number, number[]>> => {
      const bench = new CommandBench({ maxNumTokens: maxRows, maxLogitRows: maxRows }, device);
      const wide = bench.floats(
        order.flatMap((r) => [...rows.subarray(r * 2 * hiddenSize, (r + 1) * 2 * hiddenSize)]),
        maxRows * 2 * hiddenSize,
      );
      const gated = bench.floats([], maxRows * hiddenSize);
      const normed = bench.floats([], maxRows * hiddenSize);
      const topkIds = bench.ints([], maxRows * topK);
      const topkWeights = bench.floats([], maxRows * topK);
      const [tokenIds, ranks] = [bench.ints([], maxRows), bench.ints([], maxRows)];
      const logprobs = bench.floats([], maxRows);
      bench.setCounts({ tokens: order.length, logitRows: order.length });
      bench.inputs.logitRows.set([...order.keys()]);
      bench.inputs.targets.fill(-1);
      bench.inputs.topPs.fill(0.8);
      bench.inputs.temperatures.fill(1.3);
      for (const [i, r] of order.entries()) {
        bench.inputs.seeds[i] = BigInt(r);
        bench.inputs.topKs[i] = r % 3 === 0 ? 20 : 0;
      }
      const method = {
        score: 'softmax',
        order: 'score-first',
        renormalize: true,
        numGroups: 1,
        topkGroups: 1,
        hasCorrectionBias: false,
        hasRouterBias: false,
        scalingFactor: 1,
      } as const;
      const commands: Command[] = [
        { op: 'gatedActivation', rows: 'tokens', activation: { type: 'silu' }, width: hiddenSize, input: wide, output: gated },
        {
          op: 'rmsNorm',
          rows: 'tokens',
          width: hiddenSize,
          eps: 1e-6,
          input: gated,
          weight: bench.floats(weight.subarray(0, hiddenSize)),
          output: normed,
        },
        {
          op: 'route',
          hiddenSize,
          numExperts,
          topK,
          method,
          input: normed,
          weight: bench.floats(weight),
          bias: undefined,
          correctionBias: undefined,
          topkIds,
          topkWeights,
        },
        {
          op: 'sample',
          logits: normed,
          vocabSize: hiddenSize,
          tokenIds,
          logprobs,
          ranks,
          maxTopLogprobs: 1,
          topIds: bench.ints([], maxRows),
          topLogprobs: bench.floats([], maxRows),
        },
      ];
      await bench.run(...commands);
      const bits = (values: Float32Array): number[] => [...new Uint32Array(values.buffer, values.byteOffset, values.length)];
      return new Map(
        order.map((r, i) => [
          r,
          [
            ...bits(floatsIn(normed).slice(i * hiddenSize, (i + 1) * hiddenSize)),
            ...intsIn(topkIds).slice(i * topK, (i + 1) * topK),
            ...bits(floatsIn(topkWeights).slice(i * topK, (i + 1) * topK)),
            ...intsIn(tokenIds).slice(i, i + 1),
            ...bits(floatsIn(logprobs).slice(i, i + 1)),
            ...intsIn(ranks).slice(i, i + 1),
          ],
        ]),
      );
    };
    const all = Array.from({ length: maxRows }, (_, r) => r);
    const together = await run(createDevice(2), all);
    const shuffled = await run(
      createDevice(3),
      all.map((r) => (r * 29 + 11) % maxRows),
    );
    const device = createDevice(1);
    for (const r of all) {
      expect(shuffled.get(r), `row ${String(r)} in another order`).to.deep.equal(together.get(r));
      if (r % 10 === 0) expect((await run(device, [r])).get(r), `row ${String(r)} alone`).to.deep.equal(together.get(r));
    }
  });
});
