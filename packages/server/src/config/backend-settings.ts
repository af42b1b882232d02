import { MoeError } from '@moe-server/core';
import type { Preference, PreferenceScope, PreferenceSource } from '@moe-server/core';
import { scopeOf } from './setting-scope.js';
import type { DraftBackends } from './speculative-config.js';

/** One thing that somebody wrote about kernels: `--moe-backend b12x`, `MOE_FP8_BACKEND=cutlass`, `"linear-backend.layers": …`. */
export interface BackendSetting {
  readonly option: 'moe-backend' | 'linear-backend';
  /** As in `--moe-backend.SCOPE`: a scheme key or family, `layers`, `draft`, `target`; undefined = all layers. */
  readonly scope: string | undefined;
  /** Names, an object of scopes as JSON, or `GLOB=NAME` where the scope is `layers`. */
  readonly value: string;
  readonly source: PreferenceSource;
}

/** A setting of `--OPTION.SCOPE`, whatever it is about. */
export interface ScopedSetting {
  readonly option: 'moe-backend' | 'linear-backend' | 'numerics';
  readonly scope: string;
  readonly value: string;
  readonly source: PreferenceSource;
}

/** What becomes of a named backend: a wish, or a condition. */
export interface BackendPolicies {
  readonly moe: 'prefer' | 'require';
  readonly linear: 'prefer' | 'require';
}

const scopedFlag = /^--(moe-backend|linear-backend|numerics)\.([\w.-]+)$/;
/** The other order of words, as it was proposed for vLLM: `--fp8-moe-backend`, `--fp8-block128-linear-backend`. */
const prefixedFlag = /^--([\w.-]+)-(moe|linear)-backend$/;

/** @param name - a flag without its value; undefined when it is not a scoped one. */
export function parseScopedFlag(name: string): Pick<ScopedSetting, 'option' | 'scope'> | undefined {
  const dotted = scopedFlag.exec(name);
  if (dotted !== null) return { option: dotted[1] as ScopedSetting['option'], scope: dotted[2]! };
  const prefixed = prefixedFlag.exec(name);
  if (prefixed === null) return undefined;
  return { option: `${prefixed[2] as 'moe' | 'linear'}-backend`, scope: prefixed[1]!.replaceAll('-', '.') };
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
    const [name, inline] = splitAt(arg, arg.indexOf('='));
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

/**
 * The scoped settings of the environment: `MOE_FP8_BACKEND`, `MOE_NVFP4_W4A4_BACKEND`, `MOE_DRAFT_BACKEND`, `MOE_LAYERS_BACKEND`,
 * `MOE_LINEAR_FP8_BACKEND`, `MOE_NUMERICS_NVFP4`; underscores stand for the dots of a scheme key. `VLLM_FP8_MOE_BACKEND` is read as
 * `MOE_FP8_BACKEND`, which wins where both are set.
 */
export function scopedEnvironment(environment: Readonly<Record<string, string | undefined>>): ScopedSetting[] {
  const found = Object.entries(environment).flatMap(([name, value]): ScopedSetting[] => {
    const scoped = parseVariable(name);
    if (scoped === undefined || value === undefined || value === '') return [];
    return [{ ...scoped, value, source: { type: 'environment', text: `${name}=${value}` } }];
  });
  // The order of variables is nobody's choice; names of this project come first, so that they win among equals.
  return found.sort((a, b) => (a.source.text < b.source.text ? -1 : 1));
}

function parseVariable(name: string): Pick<ScopedSetting, 'option' | 'scope'> | undefined {
  const scopeFrom = (text: string | undefined): string => (text ?? '').toLowerCase().replaceAll('_', '.');
  if (name === 'VLLM_FP8_MOE_BACKEND') return { option: 'moe-backend', scope: 'fp8' };
  const numerics = /^MOE_NUMERICS_(\w+)$/.exec(name);
  if (numerics !== null) return { option: 'numerics', scope: scopeFrom(numerics[1]) };
  const linear = /^MOE_LINEAR_(\w+)_BACKEND$/.exec(name);
  if (linear !== null) return { option: 'linear-backend', scope: scopeFrom(linear[1]) };
  const moe = /^MOE_(\w+)_BACKEND$/.exec(name);
  // MOE_LINEAR_BACKEND is the unscoped setting of linears.
  return moe === null || moe[1] === 'LINEAR' ? undefined : { option: 'moe-backend', scope: scopeFrom(moe[1]) };
}

/** What `--speculative-config` says, as settings of the role `draft`. */
export function draftSettings({ moeBackend, linearBackend }: DraftBackends, source: PreferenceSource): BackendSetting[] {
  const settings: BackendSetting[] = [];
  if (moeBackend !== undefined) settings.push({ option: 'moe-backend', scope: 'draft', value: moeBackend, source });
  if (linearBackend !== undefined) settings.push({ option: 'linear-backend', scope: 'draft', value: linearBackend, source });
  return settings;
}

/**
 * Settings that name backends, as the oracle's preferences. `!name` forbids, `auto` keeps settings of less precedence from applying.
 *
 * @throws {MoeError} MOE_USAGE naming the source.
 */
export function backendPreferences(settings: readonly BackendSetting[], policies: BackendPolicies): Preference[] {
  return settings.flatMap((setting) => {
    const kind = setting.option === 'moe-backend' ? 'moe' : 'linear';
    return wishesOf(setting).map(([scope, name]): Preference => {
      const backend = name.replace(/^!/, '').trim();
      const effect = name.startsWith('!') ? 'forbid' : backend === 'auto' ? 'auto' : policies[kind];
      if (!/^[\w.-]+$/.test(backend)) {
        throw fault(setting, `${JSON.stringify(name)} is no backend's name; \`moe-server backends\` lists them`);
      }
      return { effect, backend, scope: { kind, ...scope }, source: setting.source };
    });
  });
}

/** The names of one setting, each with the layers it is for. */
function wishesOf(setting: BackendSetting): (readonly [scope: PreferenceScope, name: string])[] {
  const { scope, value } = setting;
  const text = value.trim();
  if (text.startsWith('{')) {
    return Object.entries(parseObject(setting, text)).flatMap(([key, names]) => {
      const within = scope === 'layers' ? { layers: key } : innerScope(setting, key);
      return names.map((name) => [within, name] as const);
    });
  }
  return text.split(',').map((entry) => {
    if (scope !== 'layers') return [scopeOf(scope), entry.trim()] as const;
    const [layers, name] = splitAt(entry.trim(), entry.trim().lastIndexOf('='));
    if (name === undefined || layers === '') {
      throw fault(setting, `expected PATTERN=BACKEND such as 'model.layers.4?.*=cutlass', got ${JSON.stringify(entry)}`);
    }
    return [{ layers }, name.trim()] as const;
  });
}

function innerScope(setting: BackendSetting, key: string): PreferenceScope {
  const { scope } = setting;
  if (key === 'default') return scopeOf(scope);
  const [outer, inner] = [scopeOf(scope), scopeOf(key)];
  // A role may be narrowed to a scheme, and the other way round; two schemes or two roles at once select nothing.
  if (Object.keys(inner).some((dimension) => dimension in outer)) {
    throw fault(
      setting,
      `${JSON.stringify(key)} is another ${'role' in inner ? 'role' : 'scheme'} than that of the setting, ${String(scope)}`,
    );
  }
  return { ...outer, ...inner };
}

/** `{"nvfp4": "b12x", "fp8": ["cutlass", "!triton"]}` with the names of each key as a list. */
function parseObject(setting: BackendSetting, text: string): Readonly<Record<string, readonly string[]>> {
  const expected = `expected a JSON object of scopes and backends such as {"nvfp4":"b12x","fp8":"cutlass"}`;
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch {
    throw fault(setting, `${expected}, got ${text}`);
  }
  const entries = Object.entries(content as Record<string, unknown>).map(([key, value]) => {
    const names: readonly unknown[] = Array.isArray(value) ? value : typeof value === 'string' ? value.split(',') : [undefined];
    return [key, names.map((name) => (typeof name === 'string' ? name.trim() : refuse(key, value)))] as const;
  });
  function refuse(key: string, value: unknown): never {
    throw fault(setting, `${expected}; ${JSON.stringify(key)} is ${JSON.stringify(value)}`);
  }
  return Object.fromEntries(entries);
}

function fault({ source }: BackendSetting, message: string): MoeError {
  return new MoeError('MOE_USAGE', `${source.text}: ${message}`, { source: source.type });
}

function splitAt(text: string, at: number): [string, string | undefined] {
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)];
}
