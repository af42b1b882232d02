import type { ExpertGroupSpec } from '../../src/layer-spec.js';
import type { ErasedMoeBackend } from '../../src/oracle/erased-backend.js';
import { plan } from '../../src/oracle/plan.js';
import type { LayerPlan, Plan, PlanRequest } from '../../src/oracle/plan-types.js';
import type { Preference, PreferenceScope } from '../../src/oracle/preferences.js';
import { expertGroup, gb10, gpuFamilies } from './declared-backends.js';

/** A checkpoint of NVFP4 and FP8 experts with a BF16 draft. */
export const mixed = [expertGroup(0, 'nvfp4.w4a4'), expertGroup(1, 'fp8.block128'), expertGroup(2, 'bf16', { role: 'draft' })];

/** The plan of {@link mixed} on SM 12.1, with the GPU families. */
export function request(changes: Partial<PlanRequest> = {}): PlanRequest {
  return { layers: mixed, device: gb10, moeBackends: gpuFamilies(), linearBackends: [], maxNumTokens: 1024, ...changes };
}

/** A preference as a flag would state it. */
export function wish(
  effect: Preference['effect'],
  backend: string,
  scope: PreferenceScope = {},
  source: Preference['source']['type'] = 'flag',
): Preference {
  return { effect, backend, scope, source: { type: source, text: `--moe-backend ${backend}` } };
}

/** By layer: the backends of its bindings. */
export function backendsOf({ layers }: Plan): string[] {
  return layers.map(({ bindings }) => bindings.map(({ backend }) => backend).join('+'));
}

/** The layer of a plan of one. */
export function only({ layers }: Plan): LayerPlan {
  const [layer] = layers;
  if (layer === undefined) throw new Error('the plan has no layer');
  return layer;
}

/** The plan of one group under one declared rule. */
export function planOne(group: ExpertGroupSpec, moeBackends: readonly ErasedMoeBackend[], changes: Partial<PlanRequest> = {}): LayerPlan {
  return only(plan(request({ layers: [group], moeBackends, ...changes })));
}
