import { expect } from 'chai';
import type { BufferRef } from '../../src/device/commands.js';
import type { Device } from '../../src/device/device.js';
import { CommandBench, floatsIn, intsIn } from './command-bench.js';
import { Random, describeCpuPaths, expectClose, runOnBoth } from './cpu-paths.js';

const maxTopLogprobs = 8;
const maxRows = 8;

interface SampleBuffers {
  readonly logits: BufferRef;
  readonly tokenIds: BufferRef;
  readonly logprobs: BufferRef;
  readonly ranks: BufferRef;
  readonly topIds: BufferRef;
  readonly topLogprobs: BufferRef;
}

function buffersFor(bench: CommandBench, vocabSize: number): SampleBuffers {
  return {
    logits: bench.floats([], maxRows * vocabSize),
    tokenIds: bench.ints([], maxRows),
    logprobs: bench.floats([], maxRows),
    ranks: bench.ints([], maxRows),
    topIds: bench.ints([], maxRows * maxTopLogprobs),
    topLogprobs: bench.floats([], maxRows * maxTopLogprobs),
  };
}

/** Neutral parameters for `numRows` rows. */
function reset(bench: CommandBench, numRows: number): void {
  const { inputs } = bench;
  bench.setCounts({ logitRows: numRows });
  inputs.temperatures.fill(0);
  inputs.topPs.fill(1);
  inputs.minPs.fill(0);
  inputs.repetitionPenalties.fill(1);
  inputs.targets.fill(-1);
  inputs.adjustmentStarts.fill(0);
}

const limits = { maxLogitRows: maxRows, maxAdjustments: 64 };

async function sampleOne(device: Device, logits: readonly number[], set: (bench: CommandBench) => void): Promise<SampleBuffers> {
  const bench = new CommandBench(limits, device);
  const buffers = buffersFor(bench, logits.length);
  reset(bench, 1);
  floatsIn(buffers.logits).set(logits);
  set(bench);
  await bench.run({ op: 'sample', vocabSize: logits.length, maxTopLogprobs, ...buffers });
  return buffers;
}

describeCpuPaths('sampling on the CPU device', (createDevice) => {
  it('chooses the tokens, log-probabilities and ranks that the TypeScript device chooses', async () => {
    const device = createDevice();
    for (let round = 0; round < 60; round++) {
      const vocabSize = [1, 5, 64, 333, 2000][round % 5]!;
      const { expected, actual } = await runOnBoth(device, limits, (bench) => {
        const random = new Random(round);
        const { inputs } = bench;
        const buffers = buffersFor(bench, vocabSize);
        reset(bench, maxRows);
        floatsIn(buffers.logits).set(random.floats(maxRows * vocabSize, 1 + random.integer(8)));
        // Ties, also at the edge of top_k.
        if (round % 4 === 0) floatsIn(buffers.logits).forEach((value, i, all) => (all[i] = Math.round(value)));
        let adjustment = 0;
        for (let row = 0; row < maxRows; row++) {
          inputs.temperatures[row] = row % 4 === 0 ? 0 : 0.3 + row / 3;
          inputs.topKs[row] = row % 3 === 0 ? 0 : 1 + random.integer(vocabSize + 2);
          inputs.topPs[row] = row % 2 === 0 ? 1 : 0.05 + random.integer(95) / 100;
          inputs.minPs[row] = row > 4 ? random.integer(50) / 100 : 0;
          inputs.seeds[row] = BigInt(round * 1000 + row) * 0x123456789abcdefn;
          inputs.counters[row] = random.integer(1000);
          inputs.targets[row] = row === 7 ? random.integer(vocabSize) : -1;
          inputs.numTopLogprobs[row] = Math.min(row, vocabSize);
          inputs.repetitionPenalties[row] = 1.3;
          inputs.presencePenalties[row] = 0.25;
          inputs.frequencyPenalties[row] = 0.125;
          for (let i = 0; i < row % 4; i++, adjustment++) {
            inputs.adjustmentWords[4 * adjustment] = random.integer(vocabSize);
            inputs.adjustmentBiases[4 * adjustment + 1] = i === 2 ? -Infinity : random.next();
            inputs.adjustmentWords[4 * adjustment + 2] = random.integer(3);
            inputs.adjustmentWords[4 * adjustment + 3] = random.integer(2);
          }
          inputs.adjustmentStarts[row + 1] = adjustment;
        }
        const { tokenIds, logprobs, ranks, topIds, topLogprobs } = buffers;
        return {
          commands: [{ op: 'sample', vocabSize, maxTopLogprobs, ...buffers }],
          outputs: vocabSize === 1 ? [] : [tokenIds, ranks, topIds, logprobs, topLogprobs],
        };
      });
      for (const [i, buffer] of expected.entries()) {
        const got = actual[i] ?? buffer;
        if (i < 3) expect([...intsIn(got)], `round ${String(round)}, output ${String(i)}`).to.deep.equal([...intsIn(buffer)]);
        else expectClose(floatsIn(got), floatsIn(buffer), 2e-6);
      }
    }
  });

  it('draws tokens as often as their probabilities say', async () => {
    const bench = new CommandBench({ maxLogitRows: maxRows }, createDevice());
    const probabilities = [0.5, 0.3, 0.15, 0.05];
    const buffers = buffersFor(bench, 4);
    reset(bench, maxRows);
    for (let row = 0; row < maxRows; row++) floatsIn(buffers.logits).set(probabilities.map(Math.log), row * 4);
    bench.inputs.temperatures.fill(1);
    const program = bench.device.compile([{ op: 'sample', vocabSize: 4, maxTopLogprobs, ...buffers }], bench.inputs.layout);
    const counts = [0, 0, 0, 0];
    for (let i = 0; i < 500; i++) {
      for (let row = 0; row < maxRows; row++) bench.inputs.seeds[row] = BigInt(i * maxRows + row);
      await bench.device.submit(program, bench.inputs);
      for (const token of intsIn(buffers.tokenIds)) counts[token] = (counts[token] ?? 0) + 1;
    }
    for (const [token, count] of counts.entries()) expect(count / 4000).to.be.closeTo(probabilities[token]!, 0.03);
  });

  it('takes the lower id among equals', async () => {
    const { tokenIds, ranks } = await sampleOne(createDevice(), [1, 7, 7, 3], () => undefined);
    expect([intsIn(tokenIds)[0], intsIn(ranks)[0]]).to.deep.equal([1, 1]);
  });

  it('leaves the logits as they were', async () => {
    const { logits } = await sampleOne(createDevice(), [1, 7, 6, 3], ({ inputs }) => {
      inputs.adjustmentStarts.set([0, 2]);
      for (const i of [0, 1]) {
        inputs.adjustmentWords[4 * i] = 1;
        inputs.adjustmentBiases[4 * i + 1] = -5;
      }
    });
    expect([...floatsIn(logits).subarray(0, 4)]).to.deep.equal([1, 7, 6, 3]);
  });

  it('gives token −1 to a row without a distribution, and the other rows theirs', async () => {
    const bench = new CommandBench({ maxLogitRows: maxRows, maxAdjustments: 16 }, createDevice());
    const buffers = buffersFor(bench, 3);
    reset(bench, 5);
    floatsIn(buffers.logits).set([1, 3, 2, 1, NaN, 2, 1, Infinity, 2, -Infinity, -Infinity, -Infinity, 1, 3, 2]);
    bench.inputs.adjustmentStarts.set([0, 0, 0, 0, 0, 3]);
    for (const i of [0, 1, 2]) {
      bench.inputs.adjustmentWords[4 * i] = i;
      bench.inputs.adjustmentBiases[4 * i + 1] = -Infinity;
    }
    await bench.run({ op: 'sample', vocabSize: 3, maxTopLogprobs, ...buffers });
    expect([...intsIn(buffers.tokenIds).subarray(0, 5)]).to.deep.equal([1, -1, -1, -1, -1]);
    expect([...floatsIn(buffers.logprobs).subarray(1, 5)].every(Number.isNaN)).to.equal(true);
    expect([...intsIn(buffers.ranks).subarray(0, 5)]).to.deep.equal([1, 0, 0, 0, 0]);
  });
});
