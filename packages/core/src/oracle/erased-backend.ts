import type { ExpertSupportRule, Footprint, LinearBackend, LinearSupportRule, MoeBackend, Refusal, SupportRule } from '../backend.js';
import type { DeviceInfo } from '../device-info.js';
import type { ExpertGroupSpec, LayerSpec, LinearSpec } from '../layer-spec.js';
import type { SchemeKey } from '../quant/quant-scheme.js';

/**
 * A backend as the registry and the oracle see it: its scheme type is erased, so that backends of different schemes fit in one list.
 * Nothing here can be given weights. Only `prepare.ts` turns `implementation` back into a backend with a scheme type, after the rules
 * were evaluated and the weights' brand was checked.
 */
export interface ErasedBackend<Spec extends LayerSpec, Rule extends SupportRule<SchemeKey>> {
  readonly kind: Spec['kind'];
  readonly name: string;
  /** Name of the plugin that registered it. */
  readonly plugin: string;
  /** A frozen copy, taken at registration: what was validated is what is evaluated. */
  readonly rules: readonly Rule[];
  readonly priority: (spec: Spec, ruleId: string, device: DeviceInfo) => number;
  readonly refuse: (spec: Spec, ruleId: string, device: DeviceInfo) => Refusal | undefined;
  readonly footprint: (spec: Spec, ruleId: string) => Footprint;
  readonly missing: (ruleId: string) => string | undefined;
  /** The registered object, a {@link MoeBackend} or {@link LinearBackend} of schemes that are no longer known statically. */
  readonly implementation: unknown;
}

export type ErasedMoeBackend = ErasedBackend<ExpertGroupSpec, ExpertSupportRule>;
export type ErasedLinearBackend = ErasedBackend<LinearSpec, LinearSupportRule>;

/** Erases the scheme type. The caller has validated the backend. */
export function eraseMoeBackend<S extends SchemeKey>(backend: MoeBackend<S>, plugin: string): ErasedMoeBackend {
  return erase<'moe', ExpertGroupSpec, ExpertSupportRule, ExpertSupportRule<S>>(backend, plugin);
}

/** Erases the scheme type. The caller has validated the backend. */
export function eraseLinearBackend<S extends SchemeKey>(backend: LinearBackend<S>, plugin: string): ErasedLinearBackend {
  return erase<'linear', LinearSpec, LinearSupportRule, LinearSupportRule<S>>(backend, plugin);
}

/** What erasing needs of either kind of backend. */
interface Erasable<Kind, Spec, Rule> {
  readonly kind: Kind;
  readonly name: string;
  readonly rules: readonly Rule[];
  readonly priority: (spec: Spec, rule: Rule, device: DeviceInfo) => number;
  readonly refuse?: (spec: Spec, rule: Rule, device: DeviceInfo) => Refusal | undefined;
  readonly footprint: (spec: Spec, rule: Rule) => Footprint;
  readonly missing?: (rule: Rule) => string | undefined;
}

function erase<Kind extends Spec['kind'], Spec extends LayerSpec, Rule extends SupportRule<SchemeKey>, OwnRule extends Rule>(
  backend: Erasable<Kind, Spec, OwnRule>,
  plugin: string,
): ErasedBackend<Spec, Rule> {
  // The backend is handed its own rule object, found by id: so its functions keep their exact types without a cast.
  const own = new Map(backend.rules.map((rule) => [rule.id, rule]));
  const ownRule = (id: string): OwnRule => {
    const rule = own.get(id);
    if (rule === undefined) throw new TypeError(`The backend "${backend.name}" has no rule "${id}".`);
    return rule;
  };
  return Object.freeze({
    kind: backend.kind,
    name: backend.name,
    plugin,
    rules: deepFreeze(structuredClone(backend.rules)),
    priority: (spec: Spec, ruleId: string, device: DeviceInfo) => backend.priority(spec, ownRule(ruleId), device),
    refuse: (spec: Spec, ruleId: string, device: DeviceInfo) => backend.refuse?.(spec, ownRule(ruleId), device),
    footprint: (spec: Spec, ruleId: string) => backend.footprint(spec, ownRule(ruleId)),
    missing: (ruleId: string) => backend.missing?.(ownRule(ruleId)),
    implementation: backend,
  });
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const member of Object.values(value)) deepFreeze<unknown>(member);
  }
  return value;
}
