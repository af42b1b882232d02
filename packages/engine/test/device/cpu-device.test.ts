import { expect } from 'chai';
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import type { Command, LinearCommand } from '../../src/device/commands.js';
import { loadCpuAddon } from '../../src/device/cpu-addon.js';
import { createCpuDevice } from '../../src/device/cpu-device.js';
import { layoutStep } from '../../src/device/step-inputs.js';
import { CommandBench } from './command-bench.js';
import { describeCpuDevice, failureOf, nativeKernel, testKernels, thrownBy } from './cpu-device-suite.js';

describeCpuDevice('createCpuDevice', (createDevice) => {
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
      const buffer = device.allocate(3_000_001, 'weights');
      expect(new Uint8Array(buffer.buffer).every((byte) => byte === 0)).to.equal(true);
      expect([buffer.byteOffset, buffer.byteLength]).to.deep.equal([0, 3_000_001]);
      const { code, message } = thrownBy(() => device.allocate(2_000_000, 'the KV cache'));
      expect(code).to.equal('MOE_DEVICE_MEMORY');
      expect(message).to.contain('the KV cache').and.to.contain('2000000 bytes wanted').and.to.contain('1999999');
      device.dispose();
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
});
