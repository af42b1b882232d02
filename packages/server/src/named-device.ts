import { MoeError } from '@moe-server/core';
import type { CpuDeviceInfo, CpuFeature, CudaDeviceInfo, DeviceInfo } from '@moe-server/core';

/** Devices that `plan --as` knows by name. Memory is what the data sheet says; of unified memory, all of it. */
const gpus: Readonly<Record<string, readonly [name: string, sm: number, gibibytes: number]>> = {
  a100: ['NVIDIA A100 80GB', 80, 80],
  l40s: ['NVIDIA L40S', 89, 48],
  rtx4090: ['NVIDIA GeForce RTX 4090', 89, 24],
  h100: ['NVIDIA H100 80GB', 90, 80],
  h200: ['NVIDIA H200', 90, 141],
  b200: ['NVIDIA B200', 100, 180],
  rtx5090: ['NVIDIA GeForce RTX 5090', 120, 32],
  'rtx-pro-6000': ['NVIDIA RTX PRO 6000 Blackwell', 120, 96],
  gb10: ['NVIDIA GB10 (DGX Spark)', 121, 128],
};

const avx2: readonly CpuFeature[] = ['avx2', 'fma', 'f16c'];
const avx512: readonly CpuFeature[] = [...avx2, 'avx512f', 'avx512bw', 'avx512vl', 'avx512dq', 'avx512vbmi', 'avx512vnni'];
const cpus: Readonly<Record<string, readonly CpuFeature[]>> = {
  'cpu-portable': [],
  'cpu-avx2': avx2,
  'cpu-avx512': avx512,
  'cpu-avx512-bf16': [...avx512, 'avx512bf16'],
};

/** Every name, for the help. */
export const deviceNames: readonly string[] = [...Object.keys(gpus), 'sm_NN', ...Object.keys(cpus)];

/**
 * The device that a name stands for: a product (`gb10`), a compute capability (`sm_90`), or a kind of processor (`cpu-avx2`).
 *
 * @throws {MoeError} MOE_USAGE listing the names.
 */
export function namedDevice(name: string): DeviceInfo {
  const key = name.toLowerCase();
  const gpu = gpus[key];
  if (gpu !== undefined) return cuda(gpu[0], gpu[1], gpu[2] * 2 ** 30);
  const sm = /^sm_?(\d{2,3})[a-z]?$/.exec(key)?.[1];
  if (sm !== undefined) return cuda(`a GPU of compute capability ${sm.slice(0, -1)}.${sm.slice(-1)}`, Number(sm), undefined);
  const features = cpus[key];
  if (features !== undefined) return cpu(key, features);
  throw new MoeError('MOE_USAGE', `--as ${name}: there is no such device; known are ${deviceNames.join(', ')}`, { device: name });
}

function cuda(name: string, sm: number, memoryBytes: number | undefined): CudaDeviceInfo {
  return { type: 'cuda', name, sm, memoryBytes };
}

function cpu(name: string, features: readonly CpuFeature[]): CpuDeviceInfo {
  return { type: 'cpu', name, architecture: 'x64', features, numThreads: 1, memoryBytes: undefined };
}
