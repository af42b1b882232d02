import type { ExpertsArgs, LinearArgs } from '@moe-server/core';
import { loadNativeAddon } from '@moe-server/core';

/** Weight formats of the packed layout; native/weight_format.h describes them. */
export type WeightFormat = 'nvfp4' | 'mxfp4' | 'fp8' | 'fp8-block128' | 'bf16' | 'f16';

/** How a kernel represents its input; native/weight_format.h. */
export type InputKind = 'float' | 'nvfp4' | 'fp8-static' | 'fp8-token' | 'fp8-group128' | 'bf16';

/** Instruction sets that kernels exist for; the addon knows which of them this processor has. */
export type InstructionSet = 'portable' | 'avx2' | 'avx512' | 'neon';

/** Packed weights, as a type-tagged External. */
export type WeightsExternal = object & { readonly __weights?: never };

/** A `moe_kernel`, as a type-tagged External. */
export type KernelExternal = object & { readonly __kernel?: never };

/** One matrix in the checkpoint's form. Arrays must not change until the promise of `packMatrix` has settled. */
export interface MatrixSource {
  readonly codes: Uint8Array;
  /** nvfp4: e4m3 per 16 columns; mxfp4: e8m0 per 32. */
  readonly scaleCodes?: Uint8Array;
  /** fp8-block128: [ceil(rows/128), ceil(columns/128)]. */
  readonly blockScales?: Float32Array;
  /** [rows]; left out = `factor` for every row. */
  readonly rowFactors?: Float32Array;
  readonly factor: number;
  /** [rows]; required when the weights were created with biases. */
  readonly bias?: Float32Array;
}

/** What `unpackMatrix` answers; arrays that the format does not have are empty. */
export interface UnpackedMatrix {
  readonly codes: Uint8Array;
  readonly scaleCodes: Uint8Array;
  /** [rows], as packed. */
  readonly factors: Float32Array;
  readonly blockScales: Float32Array;
  readonly bias: Float32Array;
}

export interface KernelOptions {
  /** For messages: `cpu/nvfp4-same-avx512`. */
  readonly name: string;
  readonly isa: InstructionSet;
  readonly input: InputKind;
  /** Per matrix; read for `nvfp4` and `fp8-static` only. */
  readonly inputScales: Float32Array;
}

export interface ExpertsKernelOptions extends KernelOptions {
  readonly topK: number;
  readonly activation: { readonly type: 'silu' } | { readonly type: 'swiglu'; readonly alpha: number; readonly limit: number };
}

/** The exports of native/addon.cc. A test compares the names with the real ones. */
export interface CpuAddon {
  readonly instructionSets: () => InstructionSet[];
  /** Matrices 3e, 3e+1, 3e+2 are gate, up and down of slot e. @throws an error with code OUT_OF_MEMORY. */
  readonly createExpertWeights: (options: {
    readonly format: WeightFormat;
    readonly hiddenSize: number;
    readonly moeIntermediateSize: number;
    readonly numExperts: number;
    readonly hasBias: boolean;
  }) => WeightsExternal;
  /** Matrices are the modules. @throws an error with code OUT_OF_MEMORY. */
  readonly createLinearWeights: (options: {
    readonly format: WeightFormat;
    readonly inFeatures: number;
    readonly outFeatures: Int32Array;
    readonly hasBias: boolean;
  }) => WeightsExternal;
  /** Off the JS thread. Rejects with an error whose code is NAN_CODE or BAD_SCALE. */
  readonly packMatrix: (weights: WeightsExternal, matrix: number, source: MatrixSource) => Promise<void>;
  readonly unpackMatrix: (weights: WeightsExternal, matrix: number) => UnpackedMatrix;
  /** The memory of the weights: tiles, then factors, biases and block scales. Writing there is packing. */
  readonly exposeWeights: (weights: WeightsExternal) => readonly Uint8Array<ArrayBuffer>[];
  /** Detaches those arrays, which otherwise keep the memory until they are collected. */
  readonly concealWeights: (parts: readonly Uint8Array<ArrayBuffer>[]) => void;
  readonly weightsBytes: (weights: WeightsExternal) => number;
  /** Kernels keep what they need. */
  readonly disposeWeights: (weights: WeightsExternal) => void;
  readonly createExpertsKernel: (weights: WeightsExternal, options: ExpertsKernelOptions) => KernelExternal;
  readonly createLinearKernel: (weights: WeightsExternal, options: KernelOptions) => KernelExternal;
  readonly disposeKernel: (kernel: KernelExternal) => void;
  readonly workspaceBytes: (kernel: KernelExternal, numTokens: number, numThreads: number) => number;
  /** For tests, conformance and benchmarks: blocks the JS thread and runs on a pool of the addon's own. */
  readonly runExperts: (kernel: KernelExternal, args: ExpertsArgs & { readonly hiddenSize: number }, numThreads: number) => void;
  /** As runExperts. */
  readonly runLinear: (
    kernel: KernelExternal,
    args: LinearArgs & { readonly inFeatures: number; readonly outFeatures: number },
    numThreads: number,
  ) => void;
}

/** Names of all exports, to be compared with the real addon. */
export const addonExports: readonly (keyof CpuAddon)[] = [
  'instructionSets',
  'createExpertWeights',
  'createLinearWeights',
  'packMatrix',
  'unpackMatrix',
  'exposeWeights',
  'concealWeights',
  'weightsBytes',
  'disposeWeights',
  'createExpertsKernel',
  'createLinearKernel',
  'disposeKernel',
  'workspaceBytes',
  'runExperts',
  'runLinear',
];

let loaded: { readonly addon: CpuAddon } | { readonly error: unknown } | undefined;

/**
 * The addon, loaded at the first call.
 *
 * @throws {MoeError} MOE_PLUGIN_ADDON naming every place that was tried; the same error at every call.
 */
export function cpuAddon(): CpuAddon {
  loaded ??= load();
  if ('error' in loaded) throw loaded.error;
  return loaded.addon;
}

function load(): NonNullable<typeof loaded> {
  try {
    const addon = loadNativeAddon({
      packageName: '@moe-server/backend-cpu',
      packageUrl: import.meta.url,
      addonName: 'backend_cpu',
      envVariable: 'MOE_BACKEND_CPU_ADDON',
    });
    return { addon: addon as CpuAddon };
  } catch (error) {
    return { error };
  }
}
