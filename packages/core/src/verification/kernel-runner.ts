import type { ExpertsArgs, Kernel, LinearArgs } from '../backend.js';
import type { ExpertGroupSpec, LinearSpec } from '../layer-spec.js';

/** Calls one kernel by itself. Native kernels need an executor, so the engine's device is behind it. */
export interface KernelRunner {
  /**
   * @returns [numTokens, hiddenSize]
   * @throws {MoeError} MOE_DEVICE_KERNEL when the kernel fails or cannot run here.
   */
  readonly runExperts: (kernel: Kernel, group: ExpertGroupSpec, call: ExpertsCall) => Promise<Float32Array>;
  /** @returns [numTokens, outFeatures] */
  readonly runLinear: (kernel: Kernel, linear: LinearSpec, call: LinearCall) => Promise<Float32Array>;
}

export type ExpertsCall = Omit<ExpertsArgs, 'output' | 'accumulate'>;
export type LinearCall = Omit<LinearArgs, 'output' | 'accumulate'>;
