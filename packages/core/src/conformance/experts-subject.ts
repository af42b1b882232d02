import type { ExpertSupportRule, MoeBackend } from '../backend.js';
import type { ExpertGroupSpec } from '../layer-spec.js';
import { schemeInfo } from '../quant/quant-scheme.js';
import { expectEqual } from './comparison.js';
import { expertWeightsOf, randomExperts, randomExpertsCall } from './layers.js';
import type { RoutingPattern } from './layers.js';
import { Random } from '../random.js';
import { referenceExperts } from '../reference/reference-layers.js';
import type { Subject, SubjectCall } from './subject.js';
import { invokeKernel } from './suite.js';
import type { SuiteContext } from './suite.js';
import { clampTo } from './sizes.js';
import { storedCopy } from './stored-copy.js';
import { toleranceFor } from '../reference/tolerance.js';

/** The most tokens that a case brings. */
export const mostTokens = 130;

/** Packs random experts for a rule and makes a kernel on them. */
export async function openExpertsSubject(
  context: SuiteContext,
  backend: MoeBackend,
  rule: ExpertSupportRule,
  group: ExpertGroupSpec,
): Promise<Subject> {
  const { options, seed, decode } = context;
  const { device } = options;
  const experts = randomExperts(group, new Random(seed).fork(-1), context.makeMatrix);
  const packed = await backend.pack(group, rule, expertWeightsOf(experts), { device });
  const maxNumTokens = clampTo(rule.tokens, mostTokens);
  const createKernel: Subject['createKernel'] = (weights = packed) => backend.createKernel(group, rule, weights, { device, maxNumTokens });
  const { hiddenSize, moeIntermediateSize, schemes } = group;
  const name = `${backend.name}/${rule.id}, ${schemes.w13}${schemes.w2 === schemes.w13 ? '' : ` and ${schemes.w2}`}, hidden ${String(hiddenSize)}, inner ${String(moeIntermediateSize)}, seed ${String(seed)}`;
  return {
    context: name,
    inputWidth: hiddenSize,
    outputWidth: hiddenSize,
    arithmetic: rule.arithmetic,
    schemes: [schemes.w13, schemes.w2],
    layout: rule.layout,
    packed,
    kernel: await createKernel(),
    footprint: backend.footprint(group, rule),
    codeBytes:
      group.experts.length * hiddenSize * moeIntermediateSize * (2 * codeBytesPerWeight(schemes.w13) + codeBytesPerWeight(schemes.w2)),
    maxNumTokens,
    reference: (call) => referenceExperts({ ...callFields(call), group, arithmetic: rule.arithmetic, experts, decode }),
    tolerance: ({ numTokens, topK, topkSlots }) => {
      const numChoices = topkSlots.subarray(0, numTokens * topK).filter((slot) => slot >= 0).length;
      const counts = {
        inputs: numChoices * hiddenSize,
        intermediates: numChoices * moeIntermediateSize,
        outputs: numTokens * hiddenSize,
        columns: Math.max(hiddenSize, moeIntermediateSize),
      };
      return toleranceFor({ first: schemes.w13, second: schemes.w2 }, rule.arithmetic, counts);
    },
    invoke: (kernel, call, output, accumulate) => invokeKernel(kernel, call, output, accumulate, options),
    createKernel,
    stored: storedCopy(name, backend.storage, { spec: group, rule, packed, context: { device } }),
    expectUnpacked: (weights = packed) => {
      experts.forEach((expert, slot) => {
        expectEqual(backend.unpack(group, weights, slot), expert, `${name}: unpack(${String(slot)})`);
      });
    },
  };
}

/** Bytes of a code, scales left out: 4.5 bits of NVFP4 are 4 of code. */
export function codeBytesPerWeight(scheme: string): number {
  return Math.floor(schemeInfo(scheme)?.bitsPerWeight ?? 0) / 8;
}

function callFields({
  numTokens,
  rows,
  topK,
  topkSlots,
  topkWeights,
}: SubjectCall): Pick<Parameters<typeof referenceExperts>[0], 'numTokens' | 'topK' | 'hiddenStates' | 'topkSlots' | 'topkWeights'> {
  return { numTokens, topK, hiddenStates: rows, topkSlots, topkWeights };
}

export interface RandomCallShape {
  readonly numTokens: number;
  readonly routing: RoutingPattern;
  readonly topK: number;
  readonly numSlots: number;
  /** Factor on the hidden states. */
  readonly amplitude: number;
}

/** A random call for a subject. */
export function randomCall(
  subject: Subject,
  { numTokens, routing, topK, numSlots, amplitude }: RandomCallShape,
  random: Random,
): SubjectCall {
  const shape = { topK, hiddenSize: subject.inputWidth, experts: Array.from({ length: numSlots }, (_, slot) => slot) };
  const { hiddenStates, topkSlots, topkWeights } = randomExpertsCall(shape, numTokens, routing, random);
  return { numTokens, rows: hiddenStates.map((value) => value * amplitude), topK, topkSlots, topkWeights };
}
