import { MoeError, schemeInfo } from '@moe-server/core';
import type { Preference, PreferenceScope, PreferenceSource, SchemeKey } from '@moe-server/core';
import type { OptionName } from './options.js';

/** A setting for the layers of one scheme: `--moe-backend.fp8 cutlass`, `--numerics.nvfp4 wider`. */
export interface ScopedSetting {
  readonly option: 'moe-backend' | 'linear-backend' | 'numerics';
  /** A scheme key (`fp8.block128`) or family (`fp8`). */
  readonly scope: string;
  readonly value: string;
  readonly source: PreferenceSource;
}

const scopedFlag = /^--(moe-backend|linear-backend|numerics)\.([\w.-]+)$/;
/** The other order of words, as it was proposed for vLLM: `--fp8-moe-backend`. */
const prefixedFlag = /^--(\w+)-moe-backend$/;

/** @param name - a flag without its value; undefined when it is not a scoped one. */
export function parseScopedFlag(name: string): Pick<ScopedSetting, 'option' | 'scope'> | undefined {
  const dotted = scopedFlag.exec(name);
  if (dotted !== null) return { option: dotted[1] as ScopedSetting['option'], scope: dotted[2]! };
  const prefixed = prefixedFlag.exec(name);
  return prefixed === null ? undefined : { option: 'moe-backend', scope: prefixed[1]! };
}

/**
 * Takes the scoped flags out of the arguments: their names are open, which no flag parser knows.
 *
 * @throws {MoeError} MOE_USAGE when a value is missing.
 */
export function readScopedFlags(args: readonly string[]): { readonly rest: string[]; readonly scoped: ScopedSetting[] } {
  const rest: string[] = [];
  const scoped: ScopedSetting[] = [];
  for (let i = 0; i < args.length; i++) {
    const arg = args[i]!;
    const [name, inline] = splitOnce(arg, '=');
    const setting = parseScopedFlag(name);
    if (setting === undefined) {
      rest.push(arg);
      continue;
    }
    const value = inline ?? args[++i];
    if (value === undefined || value.startsWith('--')) throw new MoeError('MOE_USAGE', `${name}: the value is missing`);
    scoped.push({ ...setting, value, source: { type: 'flag', text: `${name} ${value}` } });
  }
  return { rest, scoped };
}

/** Settings that name backends, as the oracle's preferences. `!name` forbids; `auto` says nothing. */
export function backendPreferences(
  found: readonly (readonly [name: OptionName, value: unknown, source: PreferenceSource])[],
  scoped: readonly ScopedSetting[],
  policy: 'prefer' | 'require',
): Preference[] {
  const preferences: Preference[] = [];
  const add = (kind: 'moe' | 'linear', name: string, scope: PreferenceScope, source: PreferenceSource): void => {
    const isForbidden = name.startsWith('!');
    const backend = isForbidden ? name.slice(1) : name;
    if (backend === 'auto' && !isForbidden) return;
    if (!/^[\w.-]+$/.test(backend)) {
      throw new MoeError('MOE_USAGE', `${source.text}: ${JSON.stringify(name)} is no backend's name; \`moe-server backends\` lists them`);
    }
    const effect = isForbidden ? 'forbid' : kind === 'moe' ? policy : 'prefer';
    preferences.push({ effect, backend, scope: { kind, ...scope }, source });
  };
  for (const [option, value, source] of found) {
    if (option !== 'moeBackend' && option !== 'linearBackend') continue;
    for (const name of value as readonly string[]) {
      add(option === 'moeBackend' ? 'moe' : 'linear', name, {}, { type: source.type, text: `${source.text} ${name}` });
    }
  }
  for (const { option, scope, value, source } of scoped) {
    if (option === 'numerics') continue;
    const kind = option === 'moe-backend' ? 'moe' : 'linear';
    for (const name of value.split(',')) add(kind, name.trim(), schemeScope(scope), source);
  }
  return preferences;
}

function schemeScope(scope: string): PreferenceScope {
  return scope.includes('.') || schemeInfo(scope) !== undefined ? { scheme: scope as SchemeKey } : { family: scope };
}

function splitOnce(text: string, separator: string): [string, string | undefined] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)];
}
