/** What the oracle and the plugins know of a device. The engine has the device itself. */
export type DeviceInfo = CpuDeviceInfo | CudaDeviceInfo;

export interface CpuDeviceInfo {
  readonly type: 'cpu';
  /** What a person calls it, e.g. the processor's brand string. */
  readonly name: string;
  readonly architecture: 'x64' | 'arm64' | 'other';
  /** Instruction set extensions that this processor has and this operating system lets us use. */
  readonly features: readonly CpuFeature[];
  /** Threads of the engine's pool. */
  readonly numThreads: number;
  /** Memory that weights, KV cache and workspaces may take together; undefined = not known. */
  readonly memoryBytes: number | undefined;
}

export interface CudaDeviceInfo {
  readonly type: 'cuda';
  readonly name: string;
  /** Compute capability as major * 10 + minor: 90, 100, 120, 121. */
  readonly sm: number;
  readonly memoryBytes: number | undefined;
}

/**
 * Instruction set extensions, each as the compilers name it. A name stands for one CPUID bit together with the operating
 * system's consent (XGETBV), see Intel SDM volume 1, chapters 14 and 15.
 */
export type CpuFeature =
  | 'avx2'
  | 'fma'
  | 'f16c'
  | 'avx512f'
  | 'avx512bw'
  | 'avx512vl'
  | 'avx512dq'
  | 'avx512vbmi'
  | 'avx512vnni'
  | 'avx512bf16'
  | 'avxvnni'
  | 'amx-bf16'
  | 'neon'
  | 'dotprod'
  | 'i8mm';
