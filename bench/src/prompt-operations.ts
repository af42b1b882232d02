import { dotTypeOf, schemeInfo } from '@moe-server/core';
import type { Arithmetic, DotType, LayerPlan, LayerSpec, ModelDescription, Plan, PluginHost, SchemeInfo } from '@moe-server/core';
import type { ModelConfig } from '@moe-server/engine';

/** Operations (a product and its sum are two) by what is multiplied. */
export type Operations = Readonly<Record<DotType, number>>;

/** What computing a prompt takes; the sizes of every prompt follow from it. */
export interface PromptOperations {
  /** Of a token: every layer's linears, its router and the experts that it chooses. */
  readonly perToken: Operations;
  /** Of a token and one position that it attends to: a query meets a key, and its weight a value. */
  readonly perPair: { readonly dots: DotType; readonly operations: number };
  /** Of a prompt: the logits of its last token. */
  readonly once: Operations;
}

/**
 * From the kernels that the plan binds for a chunk of `numTokens`, by the arithmetic that their rules declare.
 *
 * @param attention - what the device multiplies in attention, where the processor can.
 */
export function promptOperationsOf(
  plan: Plan,
  { groups, linears }: ModelDescription,
  { numHeads, headDim, numLayers, hiddenSize }: ModelConfig,
  host: PluginHost,
  numTokens: number,
  attention: DotType,
): PromptOperations {
  const perToken = { int8: 0, bf16: 0, f32: 0 };
  const once = { int8: 0, bf16: 0, f32: 0 };
  const plans = new Map(plan.layers.map((layer) => [layer.name, layer]));
  const dotTypeFor = (spec: LayerSpec, scheme: string): DotType => {
    const arithmetic = arithmeticOf(host, plans.get(spec.name), numTokens);
    const info = schemeInfo(scheme);
    return arithmetic === undefined || info === undefined ? 'f32' : dotTypeOf(info satisfies SchemeInfo, arithmetic);
  };
  const routers = new Set<number>();
  for (const group of groups) {
    if (group.role !== 'target') continue;
    const { schemes, moeIntermediateSize, topK, experts, numExperts } = group;
    const one = 2 * hiddenSize * moeIntermediateSize * ((topK * experts.length) / numExperts);
    perToken[dotTypeFor(group, schemes.w13)] += 2 * one;
    perToken[dotTypeFor(group, schemes.w2)] += one;
    if (!routers.has(group.layerIndex)) perToken.f32 += 2 * hiddenSize * numExperts;
    routers.add(group.layerIndex);
  }
  for (const linear of linears) {
    if (linear.role !== 'target') continue;
    const target = linear.layerIndex === undefined ? once : perToken;
    target[dotTypeFor(linear, linear.scheme)] += 2 * linear.inFeatures * linear.outFeatures;
  }
  return { perToken, perPair: { dots: attention, operations: 4 * numHeads * headDim * numLayers }, once };
}

/** Of a whole prompt. Attention is causal: token t attends to t positions, itself among them. */
export function operationsOf({ perToken, perPair, once }: PromptOperations, numTokens: number): Operations {
  const pairs = (numTokens * (numTokens + 1)) / 2;
  const of = (type: DotType): number => {
    const attention = perPair.dots === type ? pairs * perPair.operations : 0;
    return numTokens * perToken[type] + once[type] + attention;
  };
  return { int8: of('int8'), bf16: of('bf16'), f32: of('f32') };
}

function arithmeticOf(host: PluginHost, layer: LayerPlan | undefined, numTokens: number): Arithmetic | undefined {
  const binding = layer?.bindings.find(({ tokens: { min, max } }) => min <= numTokens && numTokens <= max) ?? layer?.bindings.at(-1);
  if (layer === undefined || binding === undefined) return undefined;
  const backends = layer.kind === 'moe' ? host.moeBackends : host.linearBackends;
  return backends.find(({ name }) => name === binding.backend)?.rules.find(({ id }) => id === binding.rule)?.arithmetic;
}
