import type { CpuFeature, DotType } from '@moe-server/core';
import { loadNativeAddon } from '@moe-server/core';
import type { Command } from './commands.js';
import type { StepTimes } from './device.js';
import type { StepField, StepLimits } from './step-inputs.js';

/** Exports of engine_cpu.node (native/addon.cc). A test holds them against the real ones. */
export interface CpuAddon {
  readonly cpuInfo: () => { readonly name: string; readonly features: CpuFeature[] };
  /** Zeroed memory of its own, or undefined when there is not that much. */
  readonly allocate: (byteLength: number) => ArrayBuffer | undefined;
  /** The layout of step inputs as native code computes it. */
  readonly stepLayout: (limits: StepLimits) => { readonly byteLength: number; readonly offsets: Record<StepField, number> };
  /** Bytes per second, 0 when there is not that much memory. */
  readonly measureBandwidth: (numThreads: number, totalBytes: number, pieceBytes: number) => Promise<number>;
  /** Operations per second, 0 when the processor has no instruction for such products. */
  readonly measureDotRate: (numThreads: number, type: DotType) => Promise<number>;
  readonly CpuDevice: new (numThreads: number, features: readonly CpuFeature[]) => NativeDevice;
}

/** An executor with its threads. Errors of `compile` may carry an error code as `code`, rejections of `submit` the name of the `command`. */
export interface NativeDevice {
  /** The instruction set that was chosen: `avx512`, `avx2` or `portable`. */
  readonly kernels: string;
  readonly compile: (
    commands: readonly Command[],
    limits: StepLimits,
  ) => { readonly id: number; readonly numCommands: number; readonly workspaceBytes: number };
  readonly submit: (program: number, stepInputs: ArrayBuffer) => Promise<void>;
  readonly release: (program: number) => void;
  /** Different experts that routing chose, added up over layers and steps. */
  readonly expertsChosen: () => number;
  readonly lastStep: () => StepTimes;
  readonly dispose: () => void;
}

let loaded: CpuAddon | undefined;

/**
 * The addon, loaded once. `MOE_ENGINE_CPU_ADDON` may name another file.
 *
 * @throws {MoeError} MOE_PLUGIN_ADDON that lists where it was looked for.
 */
export function loadCpuAddon(): CpuAddon {
  loaded ??= loadNativeAddon({
    packageName: '@moe-server/engine',
    packageUrl: import.meta.url,
    addonName: 'engine_cpu',
    envVariable: 'MOE_ENGINE_CPU_ADDON',
  }) as CpuAddon;
  return loaded;
}
