import type { CpuFeature, DeviceInfo } from './device-info.js';
import { MoeError } from './errors.js';

/**
 * The share of the nominal size that is planned with: drivers and runtime keep some back, and vendors differ in whether a gigabyte is 10^9 or 2^30
 * bytes, so the smaller one is taken.
 */
const usableShare = 0.95;

const avx2: readonly CpuFeature[] = ['avx2', 'fma', 'f16c'];
/** What Zen 4 and Sapphire Rapids share. */
const avx512: readonly CpuFeature[] = [...avx2, 'avx512f', 'avx512bw', 'avx512vl', 'avx512dq', 'avx512vbmi', 'avx512vnni', 'avx512bf16'];

/**
 * Devices that `plan --as` knows. Compute capabilities: CUDA C++ Programming Guide, "Compute Capabilities". Memory: the vendor's data sheets, in
 * the comments. CPU profiles name the instruction sets alone; their memory is not known, so nothing is refused for bytes.
 */
const profiles: Readonly<Record<string, DeviceInfo>> = {
  // DGX Spark: 128 GB LPDDR5x, shared with the CPU.
  gb10: cuda('NVIDIA GB10', 121, 128),
  // RTX PRO 6000 Blackwell: 96 GB GDDR7.
  'rtx-pro-6000': cuda('NVIDIA RTX PRO 6000 Blackwell', 120, 96),
  // DGX B200: 1,440 GB HBM3e in eight GPUs.
  b200: cuda('NVIDIA B200', 100, 180),
  // H100 SXM5: 80 GB HBM3.
  h100: cuda('NVIDIA H100', 90, 80),
  // H200: 141 GB HBM3e.
  h200: cuda('NVIDIA H200', 90, 141),
  // A100: 80 GB HBM2e; the 40 GB one is `sm_80` with a memory setting.
  a100: cuda('NVIDIA A100', 80, 80),
  // L40S: 48 GB GDDR6.
  l40s: cuda('NVIDIA L40S', 89, 48),
  'cpu-portable': cpu('CPU without vector extensions', []),
  'cpu-avx2': cpu('CPU with AVX2', avx2),
  'cpu-avx512': cpu('CPU with AVX-512, VNNI and BF16', avx512),
};

/** Names that {@link deviceProfile} takes, for help texts; besides them `sm_XY`, and `cpu` for the processor at hand. */
export const deviceProfileNames: readonly string[] = ['cpu', ...Object.keys(profiles), 'sm_XY'];

/**
 * The device of a name: `gb10`, `h100`, `cpu-avx2`, …, or any compute capability as `sm_90`, `sm_121` (memory unknown).
 *
 * @param thisCpu - what `cpu` stands for; left out = a processor with AVX2.
 * @throws {MoeError} MOE_USAGE listing the names.
 */
export function deviceProfile(name: string, thisCpu?: DeviceInfo): DeviceInfo {
  const key = name.toLowerCase().replaceAll('_', '-');
  if (key === 'cpu') return thisCpu ?? cpu('CPU', avx2);
  const profile = Object.hasOwn(profiles, key) ? profiles[key] : undefined;
  if (profile !== undefined) return profile;
  // sm_90a and sm_120f name the same hardware as sm_90 and sm_120.
  const sm = Number(/^sm-?(\d{2,3})[af]?$/.exec(key)?.[1]);
  if (sm >= 50) return { type: 'cuda', name: `SM ${Math.floor(sm / 10)}.${sm % 10} device`, sm, memoryBytes: undefined };
  throw new MoeError('MOE_USAGE', `There is no device "${name}"; known are ${deviceProfileNames.join(', ')}.`, {
    device: name,
    known: deviceProfileNames,
  });
}

function cuda(name: string, sm: number, nominalGigabytes: number): DeviceInfo {
  return { type: 'cuda', name, sm, memoryBytes: Math.floor(nominalGigabytes * 1e9 * usableShare) };
}

function cpu(name: string, features: readonly CpuFeature[]): DeviceInfo {
  return { type: 'cpu', name, architecture: 'x64', features, numThreads: 1, memoryBytes: undefined };
}
