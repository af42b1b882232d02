import type { Kernel } from '@moe-server/core';
import { isMoeError } from '@moe-server/core';
import { expect } from 'chai';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { Worker } from 'node:worker_threads';
import type { Command, LinearCommand } from '../../src/device/commands.js';
import { loadCpuAddon } from '../../src/device/cpu-addon.js';
import { cpuDeviceProblem, createCpuDevice } from '../../src/device/cpu-device.js';
import type { Device } from '../../src/device/device.js';
import type { StepInputs } from '../../src/device/step-inputs.js';
import { layoutStep } from '../../src/device/step-inputs.js';
import { CommandBench, floatsIn, intsIn } from './command-bench.js';
import { Random, expectClose } from './cpu-paths.js';

/** native/test/kernels.cc */
interface TestKernels {
  linear: (inFeatures: number, outFeatures: number, weights: Float32Array) => unknown;
  experts: () => unknown;
  failing: () => unknown;
  poolProbe: () => unknown;
  otherVersion: () => unknown;
  dispose: (external: unknown) => void;
}

const nativeKernel = (external: unknown): Kernel => ({
  entry: { type: 'native', external },
  workspaceBytes: () => 0,
  dispose: () => undefined,
});

async function failureOf(promise: Promise<unknown>): Promise<{ code: string; message: string }> {
  const failure = await promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  if (!isMoeError(failure)) return expect.fail(`expected a MoeError, got ${String(failure)}`);
  return failure;
}

function thrownBy(run: () => unknown): { code: string; message: string } {
  try {
    run();
  } catch (error) {
    if (isMoeError(error)) return error;
    throw error;
  }
  return expect.fail('nothing was thrown');
}

const problem = cpuDeviceProblem();

(problem === undefined ? describe : describe.skip)(`createCpuDevice${problem === undefined ? '' : ` (${problem})`}`, () => {
  const kernels =
    problem === undefined ? (createRequire(import.meta.url)('../../../build/Release/engine_test_kernels.node') as TestKernels) : undefined;
  const testKernels = (): TestKernels => kernels ?? expect.fail('no test kernels');
  const devices: Device[] = [];
  const createDevice = (numThreads = 2): Device => {
    const device = createCpuDevice({ numThreads });
    devices.push(device);
    return device;
  };
  afterEach(() => {
    for (const device of devices.splice(0)) device.dispose();
  });

  describe('the addon', () => {
    it('exports what its type says', () => {
      expect(Object.keys(loadCpuAddon()).sort()).to.deep.equal([
        'CpuDevice',
        'allocate',
        'cpuInfo',
        'measureBandwidth',
        'measureDotRate',
        'stepLayout',
      ]);
    });

    it('lays step inputs out as TypeScript does', () => {
      for (const [a, b, c, d, e] of [
        [1, 1, 1, 1, 1],
        [512, 64, 33, 129, 1000],
        [7, 3, 0, 0, 0],
      ] as [number, number, number, number, number][]) {
        const limits = { maxNumTokens: a, maxNumSeqs: b, maxLogitRows: c, maxBlocksPerSeq: d, maxAdjustments: e };
        const { byteLength, offsets } = layoutStep(limits);
        expect(loadCpuAddon().stepLayout(limits)).to.deep.equal({ byteLength, offsets });
      }
    });
  });

  describe('the device', () => {
    it('describes the processor and its own threads', () => {
      const { info } = createDevice(3);
      expect(info.type).to.equal('cpu');
      if (info.type !== 'cpu') return;
      expect(info.name).to.not.equal('');
      expect(info.numThreads).to.equal(3);
      expect(info.memoryBytes).to.be.greaterThan(0);
      expect(info.features).to.deep.equal(loadCpuAddon().cpuInfo().features);
    });

    it('refuses features that the processor lacks', () => {
      expect(thrownBy(() => createCpuDevice({ features: ['neon', 'avxvnni', 'amx-bf16', 'dotprod'] })).message).to.match(
        /does not have .*; it has /,
      );
    });

    it('refuses a number of threads that makes no sense', () => {
      for (const numThreads of [0, -1, 1.5, 1025, NaN]) {
        expect(thrownBy(() => createCpuDevice({ numThreads })).message).to.contain(`from 1 to 1024, got ${String(numThreads)}`);
      }
    });

    it('gives out zeroed memory and refuses more than there is', () => {
      const device = createCpuDevice({ numThreads: 1, memoryBytes: 5_000_000 });
      devices.push(device);
      const buffer = device.allocate(3_000_001, 'weights');
      expect(new Uint8Array(buffer.buffer).every((byte) => byte === 0)).to.equal(true);
      expect([buffer.byteOffset, buffer.byteLength]).to.deep.equal([0, 3_000_001]);
      const { code, message } = thrownBy(() => device.allocate(2_000_000, 'the KV cache'));
      expect(code).to.equal('MOE_DEVICE_MEMORY');
      expect(message).to.contain('the KV cache').and.to.contain('2000000 bytes wanted').and.to.contain('1999999');
    });

    it('refuses another step while one runs', async () => {
      const bench = new CommandBench({}, createDevice());
      const program = bench.device.compile([], bench.inputs.layout);
      const first = bench.device.submit(program, bench.inputs);
      expect((await failureOf(bench.device.submit(program, bench.inputs))).message).to.contain('one submit at a time');
      await first;
      await bench.device.submit(program, bench.inputs);
    });

    it('refuses a program of another device, a disposed program and a disposed device', async () => {
      const bench = new CommandBench({}, createDevice());
      const program = bench.device.compile([], bench.inputs.layout);
      expect((await failureOf(createDevice().submit(program, bench.inputs))).message).to.contain('another device');
      program.dispose();
      program.dispose();
      expect((await failureOf(bench.device.submit(program, bench.inputs))).message).to.contain('disposed');
      bench.device.dispose();
      bench.device.dispose();
      expect(thrownBy(() => bench.device.compile([], bench.inputs.layout)).message).to.contain('disposed');
    });

    it('rejects a step that was running when the device was disposed', async () => {
      const bench = new CommandBench({}, createDevice());
      const step = bench.device.submit(bench.device.compile([], bench.inputs.layout), bench.inputs);
      bench.device.dispose();
      expect((await failureOf(step)).message).to.contain('disposed');
    });

    it('ends with its environment, also in the middle of a step', async () => {
      const script = `
        const { parentPort, workerData } = require('node:worker_threads');
        (async () => {
          const { createCpuDevice } = await import(workerData.device);
          const { StepInputs, layoutStep } = await import(workerData.stepInputs);
          const layout = layoutStep({ maxNumTokens: 64, maxNumSeqs: 1, maxLogitRows: 1, maxBlocksPerSeq: 1, maxAdjustments: 1 });
          const device = createCpuDevice({ numThreads: 2 });
          const inputs = new StepInputs(layout, device.allocate(layout.byteLength, 'step inputs').buffer);
          const rows = device.allocate(64 * 16384 * 4, 'rows');
          const norm = { op: 'rmsNorm', rows: 'tokens', width: 16384, eps: 1e-5, input: rows, weight: rows, output: rows };
          inputs.header[0] = 64;
          void device.submit(device.compile(new Array(200).fill(norm), layout), inputs);
          parentPort.postMessage('running');
          setInterval(() => undefined, 1000);
        })();`;
      const urlOf = (file: string): string => new URL(`../../src/device/${file}`, import.meta.url).href;
      for (let i = 0; i < 3; i++) {
        const worker = new Worker(script, {
          eval: true,
          workerData: { device: urlOf('cpu-device.js'), stepInputs: urlOf('step-inputs.js') },
        });
        expect(await once(worker, 'message')).to.deep.equal(['running']);
        expect(await worker.terminate()).to.equal(1);
      }
    });

    it('keeps the heap flat over 10,000 steps', async function () {
      const gc = globalThis.gc;
      const bench = new CommandBench({}, createDevice());
      const input = bench.floats(new Float32Array(8 * 64).fill(1));
      bench.setCounts({ tokens: 8 });
      const program = bench.device.compile(
        [{ op: 'rmsNorm', rows: 'tokens', width: 64, eps: 1e-6, input, weight: bench.floats(new Float32Array(64).fill(1)), output: input }],
        bench.inputs.layout,
      );
      const run = async (steps: number): Promise<number> => {
        for (let i = 0; i < steps; i++) await bench.device.submit(program, bench.inputs);
        gc?.();
        return process.memoryUsage().rss;
      };
      const before = await run(2000);
      expect((await run(10_000)) - before).to.be.lessThan(16 * 2 ** 20);
    });
  });

  describe('#compile', () => {
    it('checks every shape against its buffer and names command and field', () => {
      const bench = new CommandBench({ maxNumTokens: 4 }, createDevice());
      const command: Command = { op: 'gatherRows', width: 100, input: bench.floats([], 399), output: bench.floats([], 400) };
      const { message } = thrownBy(() => bench.device.compile([command], bench.inputs.layout));
      expect(message).to.contain('command 0 (gatherRows): input needs 1600 bytes for [4, 100], its buffer has 1596');
    });

    it('refuses a ref that lies outside its buffer', () => {
      const bench = new CommandBench({ maxNumTokens: 4 }, createDevice());
      const { buffer } = bench.floats([], 100);
      const input = { buffer, byteOffset: 64, byteLength: 400 };
      const command: Command = { op: 'gatherRows', width: 1, input, output: bench.floats([], 400) };
      expect(thrownBy(() => bench.device.compile([command], bench.inputs.layout)).message).to.contain('input lies outside its buffer');
    });

    it('refuses what it cannot compute, saying what it can', () => {
      const bench = new CommandBench({}, createDevice());
      const cache = {
        dtype: 'bf16',
        keys: bench.floats([], 1000),
        values: bench.floats([], 1000),
        numBlocks: 4,
        blockSize: 16,
        numKvHeads: 1,
        headDim: 20,
        keyScale: 1,
        valueScale: 1,
      } as const;
      const queries = bench.floats([], 1000);
      const command: Command = {
        op: 'attention',
        queries,
        rowWidth: 20,
        queryOffset: 0,
        numHeads: 1,
        scale: 1,
        cache,
        slidingWindow: 0,
        sinks: undefined,
        output: queries,
      };
      expect(thrownBy(() => bench.device.compile([command], bench.inputs.layout)).message).to.contain(
        'headDim must be a multiple of 16, got 20',
      );
      const eights = { ...command, cache: { ...cache, blockSize: 8, headDim: 16 } };
      expect(thrownBy(() => bench.device.compile([eights], bench.inputs.layout)).message).to.contain(
        'blockSize must be 16 on this device, got 8',
      );
    });

    it('refuses kernels that are none, of another ABI version, of another kind, or disposed', () => {
      const bench = new CommandBench({}, createDevice());
      const buffer = bench.floats([], 8);
      const messageFor = (external: unknown): string => {
        const command: LinearCommand = {
          op: 'linear',
          rows: 'tokens',
          name: 'lm_head',
          kernel: nativeKernel(external),
          inFeatures: 1,
          outFeatures: 1,
          input: buffer,
          output: buffer,
          accumulate: false,
        };
        const { code, message } = thrownBy(() => bench.device.compile([command], bench.inputs.layout));
        expect(code).to.equal('MOE_DEVICE_KERNEL');
        expect(message).to.contain('command 0 (linear lm_head)');
        return message;
      };
      expect(messageFor({})).to.contain('expected a native kernel');
      expect(messageFor(testKernels().otherVersion())).to.contain('version 2');
      expect(messageFor(testKernels().experts())).to.contain('test/experts is not of kind linear');
      const disposed = testKernels().failing();
      testKernels().dispose(disposed);
      expect(messageFor(disposed)).to.contain('disposed');
    });
  });

  describe('kernels', () => {
    const limits = { maxNumTokens: 16, maxLogitRows: 4 };
    const linearOf = (bench: CommandBench, kernel: Kernel, accumulate = false): LinearCommand & { weights: Float32Array } => {
      const random = new Random(1);
      return {
        op: 'linear',
        rows: 'tokens',
        name: 'layers.0.mlp',
        kernel,
        inFeatures: 24,
        outFeatures: 40,
        input: bench.floats(random.floats(16 * 24)),
        output: bench.floats(new Float32Array(16 * 40).fill(1)),
        accumulate,
        weights: random.floats(40 * 24),
      };
    };

    it('get rows, workspace and the pool', async () => {
      for (const accumulate of [false, true]) {
        const bench = new CommandBench(limits, createDevice());
        const { weights } = linearOf(bench, nativeKernel(undefined));
        const command = linearOf(bench, nativeKernel(testKernels().linear(24, 40, weights)), accumulate);
        bench.setCounts({ tokens: 5 });
        const program = bench.device.compile([command], bench.inputs.layout);
        expect(program.workspaceBytes).to.equal(16 * 24 * 4);
        await bench.device.submit(program, bench.inputs);
        const input = floatsIn(command.input);
        const expected = Float32Array.from({ length: 16 * 40 }, (_, i) => {
          if (i >= 5 * 40) return 1;
          let sum = accumulate ? 1 : 0;
          for (let k = 0; k < 24; k++) sum += input[Math.floor(i / 40) * 24 + k]! * weights[(i % 40) * 24 + k]!;
          return sum;
        });
        expectClose(floatsIn(command.output), expected, 1e-6);
      }
    });

    it('get the slots and weights of experts', async () => {
      const bench = new CommandBench(limits, createDevice());
      bench.setCounts({ tokens: 2 });
      const output = bench.floats(new Float32Array(16 * 2).fill(9));
      await bench.run({
        op: 'experts',
        name: 'layers.0.experts',
        kernel: nativeKernel(testKernels().experts()),
        hiddenSize: 2,
        topK: 2,
        input: bench.floats([1, 2, 3, 4], 16 * 2),
        topkSlots: bench.ints([0, 2, -1, 1], 16 * 2),
        topkWeights: bench.floats([0.5, 0.25, 7, 2], 16 * 2),
        output,
        accumulate: false,
      });
      expect([...floatsIn(output).subarray(0, 5)]).to.deep.equal([1.25, 2.5, 12, 16, 9]);
    });

    it('may be JavaScript functions between native commands', async () => {
      const bench = new CommandBench(limits, createDevice());
      bench.setCounts({ tokens: 1 });
      const [a, b, c] = [bench.floats([3, 4], 32), bench.floats([], 32), bench.floats([], 32)];
      const weight = bench.floats([1, 1]);
      const kernel: Kernel = {
        entry: {
          type: 'js-linear',
          run: ({ input, output }) => {
            output.set(input.subarray(0, 2).map((x) => 10 * x));
          },
        },
        workspaceBytes: () => 0,
        dispose: () => undefined,
      };
      const norm = { op: 'rmsNorm', rows: 'tokens', width: 2, eps: 0, weight } as const;
      await bench.run(
        { ...norm, input: a, output: a },
        { op: 'linear', rows: 'tokens', name: 'x', kernel, inFeatures: 2, outFeatures: 2, input: a, output: b, accumulate: false },
        { ...norm, input: b, output: c },
      );
      const rms = Math.sqrt(12.5);
      expectClose(floatsIn(b).slice(0, 2), Float32Array.of(30 / rms, 40 / rms), 1e-6);
      expectClose(floatsIn(c).slice(0, 2), Float32Array.of(3 / rms, 4 / rms), 1e-6);
    });

    it('that fail reject the step with their name, and the device goes on', async () => {
      const bench = new CommandBench(limits, createDevice());
      bench.setCounts({ tokens: 1 });
      const good = linearOf(bench, nativeKernel(testKernels().linear(24, 40, linearOf(bench, nativeKernel(undefined)).weights)));
      const bad = linearOf(bench, nativeKernel(testKernels().failing()));
      const { code, message } = await failureOf(bench.run(good, bad));
      expect(code).to.equal('MOE_DEVICE_KERNEL');
      expect(message).to.contain('command 1 (linear layers.0.mlp)').and.to.contain('test/failing: the weights are on fire (status 2)');
      await bench.run(good);
    });

    it('that were disposed after compiling reject the step', async () => {
      const bench = new CommandBench(limits, createDevice());
      bench.setCounts({ tokens: 1 });
      const external = testKernels().failing();
      const program = bench.device.compile([linearOf(bench, nativeKernel(external))], bench.inputs.layout);
      testKernels().dispose(external);
      expect((await failureOf(bench.device.submit(program, bench.inputs))).message).to.contain('the kernel was disposed');
    });

    for (const numThreads of [1, 2, 5]) {
      it(`see every item of a dispatch once, on ${String(numThreads)} threads`, async () => {
        const bench = new CommandBench(limits, createDevice(numThreads));
        bench.setCounts({ tokens: 1 });
        const program = bench.device.compile([linearOf(bench, nativeKernel(testKernels().poolProbe()))], bench.inputs.layout);
        for (let i = 0; i < 10; i++) await bench.device.submit(program, bench.inputs);
      });
    }
  });

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
