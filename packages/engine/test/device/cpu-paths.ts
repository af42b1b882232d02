import type { CpuFeature } from '@moe-server/core';
import { AssertionError, strictEqual } from 'node:assert';
import type { BufferRef, Command } from '../../src/device/commands.js';
import { loadCpuAddon } from '../../src/device/cpu-addon.js';
import { cpuDeviceProblem, createCpuDevice } from '../../src/device/cpu-device.js';
import type { Device } from '../../src/device/device.js';
import type { StepLimits } from '../../src/device/step-inputs.js';
import { CommandBench } from './command-bench.js';

/** Features that choose each path of the CPU device. */
export const cpuPaths: Readonly<Record<string, readonly CpuFeature[]>> = {
  'avx512 and bf16': ['avx2', 'fma', 'f16c', 'avx512f', 'avx512bw', 'avx512vl', 'avx512dq', 'avx512vbmi', 'avx512bf16'],
  avx512: ['avx2', 'fma', 'f16c', 'avx512f', 'avx512bw', 'avx512vl', 'avx512dq'],
  avx2: ['avx2', 'fma', 'f16c'],
  portable: [],
};

/** Why a path cannot be tested here, or undefined when it can. */
export function pathProblem(features: readonly CpuFeature[]): string | undefined {
  const problem = cpuDeviceProblem();
  if (problem !== undefined) return problem;
  const missing = features.filter((feature) => !loadCpuAddon().cpuInfo().features.includes(feature));
  return missing.length === 0 ? undefined : `this processor lacks ${missing.join(', ')}`;
}

/** A suite per path; skipped with the reason where a path cannot run. The device is made before each test and disposed after it. */
export function describeCpuPaths(title: string, define: (createDevice: (numThreads?: number) => Device, path: string) => void): void {
  for (const [path, features] of Object.entries(cpuPaths)) {
    const problem = pathProblem(features);
    const name = `${title}, ${path}`;
    if (problem !== undefined) {
      describe.skip(`${name} (${problem})`, () => {
        it('runs', () => undefined);
      });
      continue;
    }
    describe(name, () => {
      const devices: Device[] = [];
      afterEach(() => {
        for (const device of devices.splice(0)) device.dispose();
      });
      define((numThreads = 2) => {
        const device = createCpuDevice({ numThreads, features });
        devices.push(device);
        return device;
      }, path);
    });
  }
}

/** Numbers in [-1, 1) from a linear congruential generator (Numerical Recipes). */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  next(): number {
    this.#state = (Math.imul(this.#state, 1664525) + 1013904223) >>> 0;
    return this.#state / 2 ** 31 - 1;
  }
  integer(below: number): number {
    return Math.floor(((this.next() + 1) / 2) * below);
  }
  floats(length: number, scale = 1): Float32Array {
    return Float32Array.from({ length }, () => this.next() * scale);
  }
}

export interface Prepared {
  readonly commands: readonly Command[];
  readonly outputs: readonly BufferRef[];
}

/** Runs the same commands on the same memory on both devices and hands out their outputs. */
export async function runOnBoth(
  device: Device,
  limits: Partial<StepLimits>,
  prepare: (bench: CommandBench) => Prepared,
): Promise<{ expected: BufferRef[]; actual: BufferRef[] }> {
  const run = async (bench: CommandBench): Promise<BufferRef[]> => {
    const { commands, outputs } = prepare(bench);
    await bench.run(...commands);
    return [...outputs];
  };
  return { expected: await run(new CommandBench(limits)), actual: await run(new CommandBench(limits, device)) };
}

/** |actual - expected| <= tolerance * (1 + |expected|), element by element. */
export function expectClose(actual: Float32Array, expected: Float32Array, tolerance: number): void {
  strictEqual(actual.length, expected.length);
  for (const [i, value] of expected.entries()) {
    const got = actual[i]!;
    if (Math.abs(got - value) <= tolerance * (1 + Math.abs(value)) || Object.is(got, value)) continue;
    throw new AssertionError({ message: `element ${String(i)}`, actual: got, expected: value });
  }
}

export function bytesIn({ buffer, byteOffset, byteLength }: BufferRef): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}
