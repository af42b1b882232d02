import { isMoeError } from '@moe-server/core';
import { expect } from 'chai';
import { CommandBench } from './command-bench.js';

describe('createTypescriptDevice', () => {
  it('refuses at compile time what does not fit its buffer', () => {
    const bench = new CommandBench({ maxNumTokens: 2 });
    const command = { op: 'gatherRows', width: 2, input: bench.floats([], 3), output: bench.floats([], 8) } as const;
    expect(() => bench.device.compile([command], bench.inputs.layout)).to.throw(/input of gatherRows needs 16 bytes/);
  });

  it('refuses native kernels by name', () => {
    const bench = new CommandBench();
    const kernel = { entry: { type: 'native', external: {} }, workspaceBytes: () => 0, dispose: () => undefined } as const;
    const sizes = {
      rows: 'tokens',
      inFeatures: 1,
      outFeatures: 1,
      input: bench.floats([], 8),
      output: bench.floats([], 8),
      accumulate: false,
    } as const;
    try {
      bench.device.compile([{ op: 'linear', name: 'lm_head', kernel, ...sizes }], bench.inputs.layout);
      expect.fail('compiled');
    } catch (error) {
      expect(isMoeError(error) && (error as { code: string }).code).to.equal('MOE_DEVICE_KERNEL');
      expect(String(error)).to.contain('lm_head');
    }
  });

  it('reports a failing kernel with its name', async () => {
    const bench = new CommandBench();
    bench.setCounts({ tokens: 1 });
    const run = (): void => {
      throw new RangeError('out of luck');
    };
    const kernel = { entry: { type: 'js-linear', run }, workspaceBytes: () => 0, dispose: () => undefined } as const;
    const sizes = {
      rows: 'tokens',
      inFeatures: 1,
      outFeatures: 1,
      input: bench.floats([], 8),
      output: bench.floats([], 8),
      accumulate: false,
    } as const;
    const failure = await bench.run({ op: 'linear', name: 'lm_head', kernel, ...sizes }).catch((error: unknown) => error);
    expect(String(failure)).to.contain('lm_head').and.to.contain('out of luck');
  });

  it('does not call a kernel for no rows', async () => {
    const bench = new CommandBench();
    bench.setCounts({ tokens: 1, logitRows: 0 });
    const run = (): void => expect.fail('called');
    const kernel = { entry: { type: 'js-linear', run }, workspaceBytes: () => 0, dispose: () => undefined } as const;
    const sizes = { inFeatures: 1, outFeatures: 1, input: bench.floats([], 8), output: bench.floats([], 8), accumulate: false } as const;
    await bench.run({ op: 'linear', rows: 'logitRows', name: 'lm_head', kernel, ...sizes });
  });
});
