import type { SampleCommand } from '../commands.js';
import type { StepInputs, StepLimits } from '../step-inputs.js';
import type { Operator } from './operator.js';
import { floatsOf, intsOf, numRowsOf } from './operator.js';

/** The sampler as step-inputs.ts states it. Probabilities are float64, so that only the rules decide. */
export function sample(command: SampleCommand, limits: StepLimits): Operator {
  const { vocabSize, maxTopLogprobs } = command;
  const { maxLogitRows } = limits;
  const logits = floatsOf(command.logits, maxLogitRows * vocabSize, 'The logits of sample');
  const tokenIds = intsOf(command.tokenIds, maxLogitRows, 'tokenIds of sample');
  const logprobs = floatsOf(command.logprobs, maxLogitRows, 'logprobs of sample');
  const ranks = intsOf(command.ranks, maxLogitRows, 'ranks of sample');
  const topIds = intsOf(command.topIds, maxLogitRows * maxTopLogprobs, 'topIds of sample');
  const topLogprobs = floatsOf(command.topLogprobs, maxLogitRows * maxTopLogprobs, 'topLogprobs of sample');
  const unmodified = new Float32Array(vocabSize);
  return (inputs) => {
    const numRows = numRowsOf(inputs, 'logitRows');
    for (let row = 0; row < numRows; row++) {
      const x = logits.subarray(row * vocabSize, (row + 1) * vocabSize);
      unmodified.set(x);
      const target = inputs.targets[row] ?? -1;
      const normalizer = logSumExp(unmodified);
      const hasDistribution = !Number.isNaN(normalizer);
      const chosen = target >= 0 ? target : choose(x, inputs, row);
      const tokenId = hasDistribution ? chosen : -1;
      tokenIds[row] = tokenId;
      logprobs[row] = (unmodified[tokenId] ?? NaN) - normalizer;
      ranks[row] = tokenId < 0 ? 0 : rankOf(unmodified, tokenId);
      const numTop = Math.min(inputs.numTopLogprobs[row] ?? 0, maxTopLogprobs);
      for (const [column, id] of largestIds(unmodified, numTop).entries()) {
        topIds[row * maxTopLogprobs + column] = id;
        topLogprobs[row * maxTopLogprobs + column] = unmodified[id]! - normalizer;
      }
    }
  };
}

function choose(x: Float32Array, inputs: StepInputs, row: number): number {
  adjust(x, inputs, row);
  const temperature = inputs.temperatures[row] ?? 0;
  const best = argmax(x);
  if (temperature === 0 || best < 0) return best;
  const probabilities = distributionOf(x, temperature, inputs.topKs[row] ?? 0, inputs.topPs[row] ?? 1, inputs.minPs[row] ?? 0);
  return invert(probabilities, uniform(inputs.seeds[row] ?? 0n, inputs.counters[row] ?? 0));
}

function adjust(x: Float32Array, inputs: StepInputs, row: number): void {
  const penalty = inputs.repetitionPenalties[row] ?? 1;
  const presence = inputs.presencePenalties[row] ?? 0;
  const frequency = inputs.frequencyPenalties[row] ?? 0;
  const end = inputs.adjustmentStarts[row + 1] ?? 0;
  for (let i = inputs.adjustmentStarts[row] ?? 0; i < end; i++) {
    const tokenId = inputs.adjustmentWords[4 * i] ?? 0;
    const bias = inputs.adjustmentBiases[4 * i + 1] ?? 0;
    const outputCount = inputs.adjustmentWords[4 * i + 2] ?? 0;
    const isSeen = inputs.adjustmentWords[4 * i + 3] !== 0;
    let value = x[tokenId]!;
    if (isSeen) value = Math.fround(value > 0 ? value / penalty : value * penalty);
    value = Math.fround(value - Math.fround(frequency * outputCount));
    if (outputCount > 0) value = Math.fround(value - presence);
    x[tokenId] = value + bias;
  }
}

/** Probabilities of all tokens, not normalized: what the three filters take away has 0. */
function distributionOf(x: Float32Array, temperature: number, topK: number, topP: number, minP: number): Float64Array {
  const scaled = Float64Array.from(x, (value) => value / temperature);
  const order = largestIds(scaled, scaled.length);
  const maximum = scaled[order[0] ?? 0]!;
  let kept = order;
  if (topK > 0 && topK < order.length) {
    const threshold = scaled[order[topK - 1]!]!;
    kept = kept.filter((id) => scaled[id]! >= threshold);
  }
  const weight = (id: number): number => Math.exp(scaled[id]! - maximum);
  if (topP < 1) {
    const wanted = topP * kept.reduce((sum, id) => sum + weight(id), 0);
    let sum = 0;
    const firstBeyond = kept.findIndex((id) => {
      if (sum >= wanted) return true;
      sum += weight(id);
      return false;
    });
    // The most probable token always stays, however small topP is.
    if (firstBeyond >= 0) kept = kept.slice(0, Math.max(firstBeyond, 1));
  }
  // The largest weight is exp(0) = 1, so that minP is a bound on the weights themselves.
  if (minP > 0) kept = kept.filter((id) => weight(id) >= minP);
  const probabilities = new Float64Array(x.length);
  for (const id of kept) probabilities[id] = weight(id);
  return probabilities;
}

/** The first token, by rising id, at which the cumulative distribution exceeds u. */
function invert(probabilities: Float64Array, u: number): number {
  const point = u * probabilities.reduce((sum, p) => sum + p, 0);
  let cumulative = 0;
  let last = 0;
  for (let id = 0; id < probabilities.length; id++) {
    const p = probabilities[id]!;
    if (p === 0) continue;
    last = id;
    cumulative += p;
    if (cumulative > point) return id;
  }
  return last;
}

const mask64 = (1n << 64n) - 1n;

function splitmix64(state: bigint): bigint {
  let z = (state + 0x9e3779b97f4a7c15n) & mask64;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & mask64;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & mask64;
  return z ^ (z >> 31n);
}

/** A number in [0, 1) from a seed and a place in its stream. */
export function uniform(seed: bigint, counter: number): number {
  const bits = splitmix64((splitmix64(seed) + BigInt(counter)) & mask64);
  return Number(bits >> 40n) / 2 ** 24;
}

/** The lowest id of the largest value, −1 when all are NaN or −Infinity. */
function argmax(x: Float32Array): number {
  let best = -1;
  let maximum = -Infinity;
  for (let id = 0; id < x.length; id++) {
    const value = x[id]!;
    if (value > maximum) {
      maximum = value;
      best = id;
    }
  }
  return best;
}

/** 1 + the number of tokens before this one in the order of {@link largestIds}. */
function rankOf(x: Float32Array, tokenId: number): number {
  const own = x[tokenId]!;
  let rank = 1;
  for (let id = 0; id < x.length; id++) {
    const value = x[id]!;
    if (value > own || (value === own && id < tokenId)) rank++;
  }
  return rank;
}

/** Ids by falling value; the lower id first among equals. */
function largestIds(x: Float32Array | Float64Array, count: number): number[] {
  if (count === 0) return [];
  const ids = Array.from(x, (_, id) => id).filter((id) => !Number.isNaN(x[id]));
  return ids.sort((a, b) => x[b]! - x[a]! || a - b).slice(0, count);
}

/** NaN where there is no distribution: a NaN or +Infinity among the logits, or nothing above −Infinity. */
function logSumExp(x: Float32Array): number {
  const maximum = x[argmax(x)] ?? -Infinity;
  let sum = 0;
  for (const value of x) sum += Math.exp(value - maximum);
  return maximum + Math.log(sum);
}
