import type { ExpertGroupSpec, ExpertSupportRule, LinearSpec, LinearSupportRule } from '@moe-server/core';
import { inputRowBytes } from '@moe-server/core';

/** Rows of the largest tile: an expert's pairs are padded to whole tiles. */
const tileRows = 128;

/**
 * Inputs are prepared once per token, and once more for every expert where scales are calibrated, because each expert may have its own. A pair of
 * token and expert takes gate and up, the intermediate and its part of the output in bf16; padded lists of pairs take eight bytes each.
 */
export function expertsWorkspaceBytes(
  { hiddenSize, moeIntermediateSize, topK, experts, schemes }: ExpertGroupSpec,
  { arithmetic }: ExpertSupportRule,
  numTokens: number,
): number {
  const pairs = numTokens * topK;
  const listed = pairs + (tileRows - 1) * Math.min(pairs, experts.length);
  const inputRows = schemes.w13 === 'fp8.tensor.static' && arithmetic.input.type === 'as-scheme' ? pairs : numTokens;
  const inputs =
    inputRows * inputRowBytes(arithmetic, schemes.w13, hiddenSize) + pairs * inputRowBytes(arithmetic, schemes.w2, moeIntermediateSize);
  return inputs + pairs * (6 * moeIntermediateSize + 2 * hiddenSize) + 8 * listed;
}

/** Modules with calibrated input scales may each have one of their own, so each may need the input once more. */
export function linearWorkspaceBytes(
  { inFeatures, modules, scheme }: LinearSpec,
  { arithmetic }: LinearSupportRule,
  numTokens: number,
): number {
  const copies = arithmetic.input.type === 'as-scheme' && scheme === 'fp8.tensor.static' ? modules.length : 1;
  return copies * numTokens * inputRowBytes(arithmetic, scheme, inFeatures);
}
