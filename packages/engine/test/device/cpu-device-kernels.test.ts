import type { Kernel } from '@moe-server/core';
import { expect } from 'chai';
import type { LinearCommand } from '../../src/device/commands.js';
import { CommandBench, floatsIn } from './command-bench.js';
import { Random, expectClose } from './cpu-paths.js';
import { describeCpuDevice, failureOf, nativeKernel, testKernels } from './cpu-device-suite.js';

describeCpuDevice('createCpuDevice', (createDevice) => {
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
});
