import type { Kernel } from '@moe-server/core';
import { isMoeError } from '@moe-server/core';
import { AssertionError } from 'node:assert';
import { createRequire } from 'node:module';
import { cpuDeviceProblem, createCpuDevice } from '../../src/device/cpu-device.js';
import type { Device } from '../../src/device/device.js';

/** What the addon of native/test/kernels.cc exports. */
export interface TestKernels {
  linear: (inFeatures: number, outFeatures: number, weights: Float32Array) => unknown;
  experts: () => unknown;
  failing: () => unknown;
  poolProbe: () => unknown;
  otherVersion: () => unknown;
  dispose: (external: unknown) => void;
}

export const nativeKernel = (external: unknown): Kernel => ({
  entry: { type: 'native', external },
  workspaceBytes: () => 0,
  dispose: () => undefined,
});

/** The MoeError that a promise is rejected with. */
export async function failureOf(promise: Promise<unknown>): Promise<{ code: string; message: string }> {
  const failure = await promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  if (!isMoeError(failure)) throw new AssertionError({ message: `expected a MoeError, got ${String(failure)}` });
  return failure;
}

/** The MoeError that a call throws. */
export function thrownBy(run: () => unknown): { code: string; message: string } {
  try {
    run();
  } catch (error) {
    if (isMoeError(error)) return error;
    throw error;
  }
  throw new AssertionError({ message: 'nothing was thrown' });
}

/** @throws where the addon was not built. */
export function testKernels(): TestKernels {
  return createRequire(import.meta.url)('../../../build/Release/engine_test_kernels.node') as TestKernels;
}

/** A suite about the CPU device; skipped with the reason where there is none. Devices are disposed after each test. */
export function describeCpuDevice(title: string, define: (createDevice: (numThreads?: number) => Device) => void): void {
  const problem = cpuDeviceProblem();
  if (problem !== undefined) {
    describe.skip(`${title} (${problem})`, () => {
      it('runs', () => undefined);
    });
    return;
  }
  describe(title, () => {
    const devices: Device[] = [];
    afterEach(() => {
      for (const device of devices.splice(0)) device.dispose();
    });
    define((numThreads = 2) => {
      const device = createCpuDevice({ numThreads });
      devices.push(device);
      return device;
    });
  });
}
