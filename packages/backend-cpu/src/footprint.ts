import type { ExpertGroupSpec, LinearSpec } from '@moe-server/core';
import type { InputKind } from './addon.js';

/** Bytes of one prepared input row at most: float32 values, their scales, padding (native/prepared_row.h). */
function rowBytes(columns: number, input: InputKind): number {
  const padded = Math.ceil(columns / 128) * 128;
  return (input === 'nvfp4' ? padded * 1.5 : padded * 4 + padded / 32) + 192;
}

/**
 * An upper bound of what an experts kernel asks for; the kernel knows more, for example whether its experts share one input scale, and
 * asks for less. See `ExpertsKernel::carve`.
 */
export function expertsWorkspaceBytes(
  { hiddenSize, moeIntermediateSize, topK, experts }: ExpertGroupSpec,
  input: InputKind,
  numTokens: number,
  numThreads: number,
): number {
  const pairs = numTokens * topK;
  // With static scales every expert may have one of its own, for gate and up each.
  const inputs = input === 'nvfp4' || input === 'fp8-static' ? 2 * pairs : numTokens;
  const tiles = Math.ceil(hiddenSize / 16);
  // What choices add to outputs: of all columns (native/experts_stream.cc), or for each thread of some (native/experts_kernel.cc).
  const partials = Math.max(Math.min(pairs * tiles * 64, 1 << 20), numThreads * Math.max(pairs * 64, Math.min(pairs * 256, 1 << 20)));
  const counters = 24 * experts.length + 4 * tiles;
  return Math.ceil(inputs * rowBytes(hiddenSize, input) + pairs * (rowBytes(moeIntermediateSize, input) + 4) + counters + partials + 1024);
}

/** As {@link expertsWorkspaceBytes}: modules with static scales may each have one of their own. */
export function linearWorkspaceBytes({ inFeatures, modules }: LinearSpec, input: InputKind, numTokens: number): number {
  const copies = input === 'nvfp4' || input === 'fp8-static' ? modules.length : 1;
  return Math.ceil(copies * numTokens * rowBytes(inFeatures, input)) + 64;
}
