import { expect } from 'chai';
import type { Device } from '../../src/device/device.js';
import type { StepInputs } from '../../src/device/step-inputs.js';
import { layoutStep } from '../../src/device/step-inputs.js';
import { CommandBench, intsIn } from './command-bench.js';
import { describeCpuDevice, failureOf } from './cpu-device-suite.js';

describeCpuDevice('createCpuDevice', (createDevice) => {
  describe('#submit', () => {
    const limits = { maxNumTokens: 8, maxNumSeqs: 2, maxLogitRows: 2, maxBlocksPerSeq: 3, maxAdjustments: 4 };

    /** A step of two sequences that is right: three tokens after seventeen positions, and one at position zero. */
    function prepare(): { bench: CommandBench; run: () => Promise<void> } {
      const bench = new CommandBench(limits, createDevice());
      const cacheRef = (): ReturnType<Device['allocate']> => bench.device.allocate(2 * 6 * 16 * 16, 'cache');
      const cache = {
        dtype: 'bf16',
        keys: cacheRef(),
        values: cacheRef(),
        numBlocks: 6,
        blockSize: 16,
        numKvHeads: 1,
        headDim: 16,
        keyScale: 1,
        valueScale: 1,
      } as const;
      const tensor = bench.floats([], 8 * 48);
      const hidden = bench.floats([], 8 * 16);
      const logits = bench.floats([1, 2, 3, 4], 2 * 10);
      const program = bench.device.compile(
        [
          { op: 'embed', table: bench.floats([], 80), vocabSize: 10, width: 16, output: hidden },
          {
            op: 'rope',
            tensor,
            rowWidth: 48,
            columnOffset: 0,
            numHeads: 2,
            headDim: 16,
            rotaryDim: 16,
            interleaved: false,
            table: bench.floats([], 21 * 16),
            maxPositions: 21,
          },
          { op: 'kvStore', tensor, rowWidth: 48, keyOffset: 16, valueOffset: 32, cache },
          {
            op: 'attention',
            queries: tensor,
            rowWidth: 48,
            queryOffset: 0,
            numHeads: 1,
            scale: 1,
            cache,
            slidingWindow: 0,
            sinks: undefined,
            output: hidden,
          },
          { op: 'gatherRows', width: 16, input: hidden, output: bench.floats([], 2 * 16) },
          {
            op: 'sample',
            logits,
            vocabSize: 10,
            tokenIds: bench.ints([], 2),
            logprobs: bench.floats([], 2),
            ranks: bench.ints([], 2),
            maxTopLogprobs: 3,
            topIds: bench.ints([], 6),
            topLogprobs: bench.floats([], 6),
          },
        ],
        bench.inputs.layout,
      );
      const { inputs } = bench;
      bench.setCounts({ tokens: 4, sequences: 2, logitRows: 2 });
      inputs.positions.set([17, 18, 19, 0]);
      inputs.slots.set([81, 82, 83, 32]);
      inputs.queryStarts.set([0, 3, 4]);
      inputs.contextLengths.set([20, 1]);
      inputs.blockTables.set([3, 5, -9, 2, -9, -9]);
      inputs.logitRows.set([2, 3]);
      inputs.topPs.fill(1);
      inputs.targets.fill(-1);
      inputs.repetitionPenalties.fill(1);
      return { bench, run: () => bench.device.submit(program, inputs) };
    }

    it('takes step inputs that are right', async () => {
      await prepare().run();
    });

    const mistakes: Readonly<Record<string, [(inputs: StepInputs) => void, RegExp]>> = {
      'more tokens than the layout has': [(i) => (i.header[0] = 9), /numTokens is 9, expected 0 to 8/],
      'a negative number of sequences': [(i) => (i.header[1] = -1), /numSeqs is -1/],
      'more logit rows than the layout has': [(i) => (i.header[2] = 3), /numLogitRows is 3/],
      'a token id beyond the vocabulary': [(i) => (i.tokenIds[3] = 10), /tokenIds\[3\] is 10, expected at least 0 and less than 10/],
      'a negative token id': [(i) => (i.tokenIds[0] = -1), /tokenIds\[0\] is -1/],
      'a position beyond the rotary table': [(i) => (i.positions[2] = 21), /positions\[2\] is 21/],
      'a position that does not follow from the context': [(i) => (i.positions[1] = 17), /positions\[1\] is 17, expected 18/],
      'a slot beyond the cache': [(i) => (i.slots[0] = 96), /slots\[0\] is 96/],
      'a negative slot': [(i) => (i.slots[0] = -4), /slots\[0\] is -4/],
      'sequences that do not start at token 0': [(i) => (i.queryStarts[0] = 1), /queryStarts\[0\] is 1/],
      'sequences that end before the last token': [(i) => (i.queryStarts[2] = 3), /queryStarts\[2\] is 3/],
      'a sequence without tokens': [(i) => (i.queryStarts[1] = 0), /queryStarts\[1\] is 0/],
      'sequences out of order': [(i) => (i.queryStarts[1] = -5), /queryStarts\[1\] is -5/],
      'a context shorter than its new tokens': [(i) => (i.contextLengths[0] = 2), /contextLengths\[0\] is 2/],
      'a context longer than its block table': [(i) => (i.contextLengths[0] = 49), /contextLengths\[0\] is 49/],
      'a block beyond the cache': [(i) => (i.blockTables[1] = 6), /blockTables\[1\] is 6/],
      'a negative block': [(i) => (i.blockTables[3] = -1), /blockTables\[3\] is -1/],
      'a logit row that is no token': [(i) => (i.logitRows[0] = 4), /logitRows\[0\] is 4/],
      'a target beyond the vocabulary': [(i) => (i.targets[1] = 10), /targets\[1\] is 10/],
      'more top log-probabilities than columns': [(i) => (i.numTopLogprobs[0] = 4), /numTopLogprobs\[0\] is 4/],
      'adjustments that run backwards': [
        (i) => {
          i.adjustmentStarts.set([2, 1, 1]);
        },
        /adjustmentStarts\[1\] is 1/,
      ],
      'more adjustments than there is room for': [
        (i) => {
          i.adjustmentStarts.set([0, 0, 5]);
        },
        /adjustmentStarts\[2\] is 5/,
      ],
      'an adjustment of no token': [
        (i) => {
          i.adjustmentStarts.set([0, 1, 1]);
          i.adjustmentWords[0] = -7;
        },
        /adjustment tokens\[0\] is -7/,
      ],
      'a temperature that is no number': [(i) => (i.temperatures[1] = NaN), /temperatures\[1\] is nan/],
      'a negative temperature': [(i) => (i.temperatures[0] = -1), /temperatures\[0\] is -1/],
    };
    for (const [title, [spoil, message]] of Object.entries(mistakes)) {
      it(`rejects ${title}, and the device goes on`, async () => {
        const { bench, run } = prepare();
        const saved = new Uint8Array(bench.inputs.buffer.slice(0));
        spoil(bench.inputs);
        const failure = await failureOf(run());
        expect(failure.code).to.equal('MOE_INTERNAL');
        expect(failure.message).to.match(message);
        new Uint8Array(bench.inputs.buffer).set(saved);
        await run();
      });
    }

    it('rejects a buffer that is shorter than the layout', async () => {
      const { bench } = prepare();
      const program = bench.device.compile([], layoutStep({ ...limits, maxAdjustments: 1000 }));
      expect((await failureOf(bench.device.submit(program, bench.inputs))).message).to.match(/the step inputs have \d+ bytes/);
    });

    it('does nothing for no tokens', async () => {
      const { bench, run } = prepare();
      bench.setCounts({});
      await run();
      expect(intsIn({ buffer: bench.inputs.buffer, byteOffset: 0, byteLength: 12 }).every((count) => count === 0)).to.equal(true);
    });
  });
});
