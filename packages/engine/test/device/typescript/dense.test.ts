import { expect } from 'chai';
import { CommandBench, floatsIn } from '../command-bench.js';

describe('dense operators of the TypeScript device', () => {
  it('embed decodes bfloat16 rows', async () => {
    const bench = new CommandBench({ maxNumTokens: 2 });
    bench.setCounts({ tokens: 2 });
    bench.inputs.tokenIds.set([1, 0]);
    const table = bench.device.allocate(8, 'table');
    new Uint16Array(table.buffer).set([0x3f80, 0xbf80, 0x4000, 0x3f00]);
    const output = bench.floats([], 4);
    await bench.run({ op: 'embed', table, vocabSize: 2, width: 2, output });
    expect([...floatsIn(output)]).to.deep.equal([2, 0.5, 1, -1]);
  });

  it('rmsNorm divides by the root mean square, in place', async () => {
    const bench = new CommandBench({ maxNumTokens: 1 });
    bench.setCounts({ tokens: 1 });
    const tensor = bench.floats([3, 4]);
    await bench.run({ op: 'rmsNorm', rows: 'tokens', width: 2, eps: 0, input: tensor, weight: bench.floats([1, 2]), output: tensor });
    const rms = Math.sqrt(12.5);
    expect(floatsIn(tensor)[0]).to.be.closeTo(3 / rms, 1e-6);
    expect(floatsIn(tensor)[1]).to.be.closeTo(8 / rms, 1e-6);
  });

  it('headRmsNorm touches its heads only', async () => {
    const bench = new CommandBench({ maxNumTokens: 1 });
    bench.setCounts({ tokens: 1 });
    const tensor = bench.floats([7, 3, 3, 5, 5, 7]);
    const weight = bench.floats([1, 2]);
    await bench.run({ op: 'headRmsNorm', tensor, rowWidth: 6, columnOffset: 1, numHeads: 2, headDim: 2, eps: 0, weight });
    expect([...floatsIn(tensor)]).to.deep.equal([7, 1, 2, 1, 2, 7]);
  });

  for (const { interleaved, expected } of [
    { interleaved: false, expected: [-3, -4, 1, 2, 9] },
    { interleaved: true, expected: [-2, 1, -4, 3, 9] },
  ]) {
    it(`rope turns pairs by the angle of the position, ${interleaved ? 'neighbours' : 'halves'}`, async () => {
      const bench = new CommandBench({ maxNumTokens: 1 });
      bench.setCounts({ tokens: 1 });
      bench.inputs.positions[0] = 1;
      const tensor = bench.floats([1, 2, 3, 4, 9]);
      // Position 1 turns by a right angle: cosines 0, sines 1.
      const table = bench.floats([1, 1, 0, 0, 0, 0, 1, 1]);
      const shape = { rowWidth: 5, columnOffset: 0, numHeads: 1, headDim: 4, rotaryDim: 4, interleaved, table, maxPositions: 2 };
      await bench.run({ op: 'rope', tensor, ...shape });
      expect([...floatsIn(tensor)]).to.deep.equal(expected);
    });
  }

  it('gatedActivation applies silu(gate) * up, or the clamped swiglu', async () => {
    const bench = new CommandBench({ maxNumTokens: 1 });
    bench.setCounts({ tokens: 1 });
    const input = bench.floats([2, 9]);
    const output = bench.floats([0]);
    await bench.run({ op: 'gatedActivation', rows: 'tokens', activation: { type: 'silu' }, width: 1, input, output });
    expect(floatsIn(output)[0]).to.be.closeTo((2 / (1 + Math.exp(-2))) * 9, 1e-5);
    await bench.run({
      op: 'gatedActivation',
      rows: 'tokens',
      activation: { type: 'swiglu', alpha: 1.702, limit: 7 },
      width: 1,
      input,
      output,
    });
    expect(floatsIn(output)[0]).to.be.closeTo((8 * 2) / (1 + Math.exp(-1.702 * 2)), 1e-5);
  });

  it('gatherRows copies the rows whose logits are wanted', async () => {
    const bench = new CommandBench({ maxNumTokens: 3, maxLogitRows: 2 });
    bench.setCounts({ tokens: 3, logitRows: 2 });
    bench.inputs.logitRows.set([2, 0]);
    const output = bench.floats([], 4);
    await bench.run({ op: 'gatherRows', width: 2, input: bench.floats([1, 2, 3, 4, 5, 6]), output });
    expect([...floatsIn(output)]).to.deep.equal([5, 6, 1, 2]);
  });
});
