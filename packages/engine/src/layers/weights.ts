import type { ExpertGroupSpec, Kernel, LinearSpec } from '@moe-server/core';
import type { BufferRef } from '../device/commands.js';

/**
 * Where layers get their weights from, by module and tensor name. Everything that it returns lives on the device, as long as the
 * model. Reads happen in the order of the calls, so that a model that loads layer by layer reads its files once, front to back. Tables
 * may be read beside anything; of linears and experts one at a time, because their kernels are checked as they are made.
 */
export interface WeightSource {
  /** [length] f32, from any float type. */
  readonly vector: (name: string, length: number) => Promise<BufferRef>;
  /** [rows, columns] f32, from any float type. */
  readonly matrix: (name: string, rows: number, columns: number) => Promise<BufferRef>;
  /** [rows, columns] bf16; wider types are rounded. */
  readonly table: (name: string, rows: number, columns: number) => Promise<BufferRef>;
  /** The kernels for these modules, which share their input and are one linear of the plan; `lm_head` is also the tied one. */
  readonly linear: (modules: readonly string[]) => Promise<BoundLinear>;
  /** The kernels for a layer's routed experts, one per group, in the plan's order. */
  readonly experts: (module: string) => Promise<readonly BoundExperts[]>;
  /** Memory for what is computed and not read. */
  readonly constant: (label: string, values: Float32Array | Int32Array) => BufferRef;
}

/** A kernel and the calls that it takes. */
export interface BoundKernel {
  readonly kernel: Kernel;
  /** Both ends inclusive. */
  readonly tokens: { readonly min: number; readonly max: number };
}

export interface BoundLinear {
  readonly spec: LinearSpec;
  /** By tokens, ascending; together they take every call. */
  readonly kernels: readonly BoundKernel[];
}

export interface BoundExperts {
  readonly group: ExpertGroupSpec;
  /** As those of a linear. */
  readonly kernels: readonly BoundKernel[];
}
