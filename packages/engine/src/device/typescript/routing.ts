import type { RoutingMethod } from '@moe-server/core';
import type { MapSlotsCommand, RouteCommand } from '../commands.js';
import type { StepLimits } from '../step-inputs.js';
import type { Operator } from './operator.js';
import { floatsOf, intsOf, numTokensOf } from './operator.js';

/** Keeps the sum of sigmoid scores from being zero, as DeepSeek-V3's published code does. */
const renormalizeEpsilon = 1e-20;

/** @param onChosen - told after every run how many different experts its tokens chose. */
export function route(command: RouteCommand, limits: StepLimits, onChosen: (numExperts: number) => void): Operator {
  const { hiddenSize, numExperts, topK, method } = command;
  const input = floatsOf(command.input, limits.maxNumTokens * hiddenSize, 'The input of route');
  const weight = floatsOf(command.weight, numExperts * hiddenSize, 'The weight of route');
  const bias = command.bias && floatsOf(command.bias, numExperts, 'The bias of route');
  const correctionBias = command.correctionBias && floatsOf(command.correctionBias, numExperts, 'The correction bias of route');
  const topkIds = intsOf(command.topkIds, limits.maxNumTokens * topK, 'topkIds of route');
  const topkWeights = floatsOf(command.topkWeights, limits.maxNumTokens * topK, 'topkWeights of route');
  const logits = new Float32Array(numExperts);
  return (inputs) => {
    const numTokens = numTokensOf(inputs);
    for (let t = 0; t < numTokens; t++) {
      for (let expert = 0; expert < numExperts; expert++) {
        let sum = bias?.[expert] ?? 0;
        for (let i = 0; i < hiddenSize; i++) sum += input[t * hiddenSize + i]! * weight[expert * hiddenSize + i]!;
        logits[expert] = sum;
      }
      const chosen = chooseExperts(logits, method, topK, correctionBias);
      for (const [j, { id, weight: expertWeight }] of chosen.entries()) {
        topkIds[t * topK + j] = id;
        topkWeights[t * topK + j] = expertWeight;
      }
    }
    onChosen(new Set(topkIds.subarray(0, numTokens * topK)).size);
  };
}

/**
 * Turns the router logits of one token into its experts, by falling weight; equal weights by rising id.
 *
 * @param correctionBias - [numExperts], added to the scores for choosing only (DeepSeek-V3's e_score_correction_bias).
 */
export function chooseExperts(
  logits: Float32Array,
  method: RoutingMethod,
  topK: number,
  correctionBias: Float32Array | undefined,
): { id: number; weight: number }[] {
  const all = Array.from(logits, (_, id) => id);
  let chosen: { id: number; weight: number }[];
  if (method.order === 'topk-first') {
    const ids = largest(all, (id) => logits[id]!, topK);
    const scores = score(
      ids.map((id) => logits[id]!),
      method.score,
    );
    chosen = ids.map((id, j) => ({ id, weight: scores[j]! }));
  } else {
    const scores = score([...logits], method.score);
    const choice = (id: number): number => scores[id]! + (correctionBias?.[id] ?? 0);
    const ids = largest(withinBestGroups(all, choice, method), choice, topK);
    chosen = ids.map((id) => ({ id, weight: scores[id]! }));
  }
  const sum = chosen.reduce((total, { weight }) => total + weight, 0);
  const factor = method.scalingFactor / (method.renormalize ? sum + renormalizeEpsilon : 1);
  return chosen.map(({ id, weight }) => ({ id, weight: weight * factor })).sort((a, b) => b.weight - a.weight || a.id - b.id);
}

/** DeepSeek's limit: a group is worth its two best experts together, and only experts of the best groups remain. */
function withinBestGroups(ids: number[], choice: (id: number) => number, { numGroups, topkGroups }: RoutingMethod): number[] {
  if (numGroups <= 1) return ids;
  const groupSize = ids.length / numGroups;
  const groups = Array.from({ length: numGroups }, (_, group) => ids.slice(group * groupSize, (group + 1) * groupSize));
  const worth = groups.map((group) => largest(group, choice, 2).reduce((sum, id) => sum + choice(id), 0));
  const best = largest([...groups.keys()], (group) => worth[group]!, topkGroups);
  return ids.filter((id) => best.includes(Math.floor(id / groupSize)));
}

function score(logits: number[], kind: RoutingMethod['score']): number[] {
  if (kind === 'sigmoid') return logits.map((logit) => 1 / (1 + Math.exp(-logit)));
  const maximum = Math.max(...logits);
  const exponentials = logits.map((logit) => Math.exp(logit - maximum));
  const sum = exponentials.reduce((total, value) => total + value, 0);
  return exponentials.map((value) => value / sum);
}

/** The `count` ids of the largest values; the lower id wins a tie. */
function largest(ids: readonly number[], value: (id: number) => number, count: number): number[] {
  return [...ids].sort((a, b) => value(b) - value(a) || a - b).slice(0, count);
}

/**
 *
 */
export function mapSlots(command: MapSlotsCommand, limits: StepLimits): Operator {
  const { topK, numExperts } = command;
  const topkIds = intsOf(command.topkIds, limits.maxNumTokens * topK, 'topkIds of mapSlots');
  const slots = intsOf(command.slots, numExperts, 'slots of mapSlots');
  const topkSlots = intsOf(command.topkSlots, limits.maxNumTokens * topK, 'topkSlots of mapSlots');
  return (inputs) => {
    const count = numTokensOf(inputs) * topK;
    for (let i = 0; i < count; i++) topkSlots[i] = slots[topkIds[i] ?? -1] ?? -1;
  };
}
