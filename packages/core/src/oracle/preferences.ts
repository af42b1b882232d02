import type { LayerRole, LayerSpec } from '../layer-spec.js';
import { schemeFamily, type SchemeKey } from '../quant/quant-scheme.js';

/**
 * One wish about which backend serves which layers.
 *
 * - `prefer`: where it can; elsewhere the next preference or the automatic order takes over, and the plan says so.
 * - `require`: this backend or none.
 * - `forbid`: never, whatever else is said.
 * - `auto`: no wish; keeps `prefer` and `require` of less precedence from applying.
 */
export interface Preference {
  readonly effect: 'prefer' | 'require' | 'forbid' | 'auto';
  /** Name of a backend; of no meaning for `auto`. */
  readonly backend: string;
  readonly scope: PreferenceScope;
  readonly source: PreferenceSource;
}

/** What is given must hold all together; nothing given = all layers. */
export interface PreferenceScope {
  /** Pattern of layer names: `*` any characters, `?` one. Matches the layer, its name before `#`, or one of its fused modules. */
  readonly layers?: string;
  readonly scheme?: SchemeKey;
  /** Scheme family: `fp8`, `nvfp4`. */
  readonly family?: string;
  readonly role?: LayerRole;
  readonly kind?: LayerSpec['kind'];
}

/** Where a setting came from, so that every message can name it. */
export interface PreferenceSource {
  readonly type: 'flag' | 'environment' | 'file';
  /** As the person wrote it: `--moe-backend b12x`, `MOE_FP8_BACKEND=cutlass`, `moe.config.json: moeBackend`. */
  readonly text: string;
}

/** The narrowest scope wins; this is the order of narrowness. */
const narrowness = ['layers', 'scheme', 'family', 'role', 'kind'] as const satisfies readonly (keyof PreferenceScope)[];
const sourceRank: Readonly<Record<PreferenceSource['type'], number>> = { flag: 0, environment: 1, file: 2 };

/** What the preferences say about one layer. */
export interface PreferenceChain {
  /** `prefer` and `require` by precedence; a `require` ends the list, because nothing may come after it, and so does an `auto`. */
  readonly wishes: readonly Preference[];
  readonly forbids: readonly Preference[];
}

/** A preference with its layer pattern compiled. */
export interface RankedPreference {
  readonly preference: Preference;
  readonly pattern: RegExp | undefined;
}

/** Sorts preferences by precedence once, so that {@link chainFor} only has to pick. Equal precedence keeps the given order. */
export function byPrecedence(preferences: readonly Preference[]): readonly RankedPreference[] {
  return [...preferences]
    .sort((a, b) => compareScopes(a.scope, b.scope) || sourceRank[a.source.type] - sourceRank[b.source.type])
    .map((preference) => ({
      preference,
      pattern: preference.scope.layers === undefined ? undefined : globPattern(preference.scope.layers),
    }));
}

/** @param sorted - result of {@link byPrecedence}. */
export function chainFor(spec: LayerSpec, schemes: readonly SchemeKey[], sorted: readonly RankedPreference[]): PreferenceChain {
  const wishes: Preference[] = [];
  const forbids: Preference[] = [];
  let isClosed = false;
  for (const ranked of sorted) {
    if (!isInScope(spec, schemes, ranked)) continue;
    const { preference } = ranked;
    if (preference.effect === 'forbid') forbids.push(preference);
    else if (!isClosed) {
      if (preference.effect !== 'auto') wishes.push(preference);
      isClosed = preference.effect !== 'prefer';
    }
  }
  return { wishes, forbids };
}

/** `--moe-backend b12x (flag)`. */
export function describeSource(source: PreferenceSource): string {
  return `${source.text} (${source.type})`;
}

/** Whether the preference speaks about this layer. A group of two schemes is in the scope of either. */
export function isInScope(spec: LayerSpec, schemes: readonly SchemeKey[], { preference: { scope }, pattern }: RankedPreference): boolean {
  if (scope.kind !== undefined && scope.kind !== spec.kind) return false;
  if (scope.role !== undefined && scope.role !== spec.role) return false;
  if (scope.family !== undefined && !schemes.some((scheme) => schemeFamily(scheme) === scope.family)) return false;
  if (scope.scheme !== undefined && !schemes.includes(scope.scheme)) return false;
  return pattern === undefined || layerNames(spec).some((name) => pattern.test(name));
}

function compareScopes(a: PreferenceScope, b: PreferenceScope): number {
  for (const key of narrowness) {
    const difference = Number(b[key] !== undefined) - Number(a[key] !== undefined);
    if (difference !== 0) return difference;
  }
  return 0;
}

function layerNames(spec: LayerSpec): readonly string[] {
  if (spec.kind === 'linear') return [spec.name, ...spec.modules.map((module) => module.name)];
  const hash = spec.name.indexOf('#');
  return hash < 0 ? [spec.name] : [spec.name, spec.name.slice(0, hash)];
}

function globPattern(glob: string): RegExp {
  const source = glob
    .replace(/[\\^$.|+()[\]{}]/g, '\\$&')
    .replace(/\*+/g, '.*')
    .replace(/\?/g, '.');
  return new RegExp(`^${source}$`);
}
