import type { ExpertGroupSpec, ExpertSupportRule, LinearSpec, LinearSupportRule } from '@moe-server/core';
import { inputRowBytes } from '@moe-server/core';

/**
 * Pairs of token and expert are sorted by expert; where scales lie in atoms of 128 rows each expert's are padded to that. A pair takes its gathered input, gate and up in bf16,
 * the intermediate in the form that meets w2, its part of the output in bf16, and twelve bytes of bookkeeping.
 */
export function expertsWorkspaceBytes(
  { hiddenSize, moeIntermediateSize, topK, experts, schemes }: ExpertGroupSpec,
  { arithmetic }: ExpertSupportRule,
  numTokens: number,
): number {
  const pairs = numTokens * topK;
  const rows = pairs + 127 * Math.min(pairs, experts.length);
  const inputs = inputRowBytes(arithmetic, schemes.w13, hiddenSize) + inputRowBytes(arithmetic, schemes.w2, moeIntermediateSize);
  return rows * (inputs + 4 * moeIntermediateSize + 2 * hiddenSize + 12) + 16 * experts.length;
}

/** Modules with calibrated input scales may each have one of their own, so each may need the input once more. */
export function linearWorkspaceBytes(
  { inFeatures, modules, scheme }: LinearSpec,
  { arithmetic }: LinearSupportRule,
  numTokens: number,
): number {
  const copies = arithmetic.input.type === 'float' ? 1 : modules.length;
  return copies * Math.ceil(numTokens / 128) * 128 * inputRowBytes(arithmetic, scheme, inFeatures);
}
