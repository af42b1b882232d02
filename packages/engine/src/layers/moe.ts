import { MoeError } from '@moe-server/core';
import type { BufferRef } from '../device/commands.js';
import type { StepEncoder } from './step-encoder.js';
import type { BoundExperts, WeightSource } from './weights.js';

/**
 * A router and its experts. Where experts of one layer differ in scheme there are several groups, each with a kernel of its own that
 * sees the whole batch and only its own experts; they add to the residual stream in the order of the plan.
 */
export class Moe {
  readonly #router: BufferRef;
  readonly #groups: readonly BoundGroup[];

  private constructor(router: BufferRef, groups: readonly BoundGroup[]) {
    this.#router = router;
    this.#groups = groups;
  }

  /** @param router - module of the router projection; @param experts - module of the routed experts. */
  static async load(weights: WeightSource, { router, experts }: { router: string; experts: string }): Promise<Moe> {
    const bound = await weights.experts(experts);
    const first = bound[0];
    if (first === undefined) throw new MoeError('MOE_INTERNAL', `The plan has no expert group for ${experts}.`, { module: experts });
    const { numExperts, hiddenSize } = first.group;
    const groups = bound.map((group) => ({ ...group, slots: slotsOf(weights, group) }));
    return new Moe(await weights.matrix(`${router}.weight`, numExperts, hiddenSize), groups);
  }

  /**
   * residual += sum over the chosen experts of weight * expert(input).
   *
   * @param input - [tokens, hiddenSize] f32
   * @param residual - [tokens, hiddenSize] f32
   */
  encode(encoder: StepEncoder, input: BufferRef, residual: BufferRef): void {
    const { numExperts, topK, hiddenSize, routing } = this.#groups[0]!.group;
    const topkIds = encoder.buffer('topk ids', 'tokens', topK);
    const topkWeights = encoder.buffer('topk weights', 'tokens', topK);
    encoder.append({
      op: 'route',
      hiddenSize,
      numExperts,
      topK,
      method: routing,
      input,
      weight: this.#router,
      bias: undefined,
      correctionBias: undefined,
      topkIds,
      topkWeights,
    });
    for (const { group, kernels, slots } of this.#groups) {
      const kernel = encoder.choose(kernels, 'tokens');
      let topkSlots = topkIds;
      if (slots !== undefined) {
        topkSlots = encoder.buffer('topk slots', 'tokens', topK);
        encoder.append({ op: 'mapSlots', topK, numExperts, topkIds, slots, topkSlots });
      }
      encoder.append({
        op: 'experts',
        name: group.name,
        kernel,
        hiddenSize,
        topK,
        input,
        topkSlots,
        topkWeights,
        output: residual,
        accumulate: true,
      });
    }
  }
}

interface BoundGroup extends BoundExperts {
  /** [numExperts] i32: slot of each expert, −1 for those of other groups; undefined where slots are ids. */
  readonly slots: BufferRef | undefined;
}

function slotsOf(weights: WeightSource, { group }: BoundExperts): BufferRef | undefined {
  if (group.experts.length === group.numExperts) return undefined;
  const slots = new Int32Array(group.numExperts).fill(-1);
  for (const [slot, expert] of group.experts.entries()) slots[expert] = slot;
  return weights.constant(`slots of ${group.name}`, slots);
}
