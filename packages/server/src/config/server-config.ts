import { readFileSync } from 'node:fs';
import { MoeError, messageOf } from '@moe-server/core';
import type { NumericsPolicy, Preference, PreferenceSource } from '@moe-server/core';
import { backendPreferences, draftSettings, parseScopedFlag, scopedEnvironment } from './backend-settings.js';
import type { BackendSetting, ScopedSetting } from './backend-settings.js';
import { optionNames, options } from './options.js';
import type { OptionName, OptionSpec, Settings } from './options.js';
import type { RawSetting } from './parsers.js';
import type { DraftBackends } from './speculative-config.js';

/** Where a value comes from; `text` as the person wrote it. */
export type SettingSource = PreferenceSource | { readonly type: 'default'; readonly text: string };

/** All settings of one start, each with its source. Flags win over the environment, the environment over the file, the file over defaults. */
export interface ServerConfig extends Settings {
  readonly sources: Readonly<Record<OptionName, SettingSource>>;
  /** From all sources together: the oracle ranks them by scope first, then by source. */
  readonly preferences: readonly Preference[];
  readonly numericsPolicy: NumericsPolicy;
}

export interface ConfigInputs {
  /** By option name, as the command line parser left them. */
  readonly flags: Readonly<Partial<Record<OptionName, RawSetting>>>;
  /** `--moe-backend.fp8 NAME` and the like. */
  readonly scopedFlags: readonly ScopedSetting[];
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** Path of a JSON file whose keys are flag names. */
  readonly file: string | undefined;
}

/**
 * Merges all sources.
 *
 * @throws {MoeError} MOE_USAGE naming the setting and its source.
 */
export function resolveConfig({ flags, scopedFlags, environment, file }: ConfigInputs): ServerConfig {
  const fromFile = file === undefined ? { settings: {}, scoped: [] } : readConfigFile(file);
  const values: Partial<Record<OptionName, unknown>> = {};
  const sources: Partial<Record<OptionName, SettingSource>> = {};
  const backendSettings: BackendSetting[] = [];
  for (const name of optionNames) {
    const option: OptionSpec = options[name];
    values[name] = option.default;
    sources[name] = { type: 'default', text: `default of --${option.name}` };
    const fromEnvironment = environment[environmentName(name)];
    const candidates: readonly (readonly [RawSetting | undefined, PreferenceSource])[] = [
      [fromFile.settings[name], { type: 'file', text: `${file ?? ''}: ${option.name}` }],
      [fromEnvironment === '' ? undefined : fromEnvironment, { type: 'environment', text: environmentName(name) }],
      [flags[name], { type: 'flag', text: `--${option.name}` }],
    ];
    for (const [raw, source] of candidates) {
      if (raw === undefined) continue;
      values[name] = parseFrom(option, raw, source);
      sources[name] = source;
      backendSettings.push(...backendSettingsOf(name, values[name], raw, source));
    }
  }
  const settings = values as unknown as Settings;
  const scoped = [...fromFile.scoped, ...scopedEnvironment(environment), ...scopedFlags];
  return {
    ...settings,
    sources: sources as Record<OptionName, SettingSource>,
    preferences: backendPreferences([...backendSettings, ...scoped.filter(isBackendSetting)], {
      moe: settings.moeBackendPolicy,
      linear: settings.linearBackendPolicy,
    }),
    numericsPolicy: {
      default: settings.numerics,
      byScheme: Object.fromEntries(
        scoped
          .filter(({ option }) => option === 'numerics')
          .map(({ scope, value, source }) => [scope, parseFrom(options.numerics, value, source)]),
      ),
    },
  };
}

/** `MOE_MAX_MODEL_LEN` for `--max-model-len`. */
export function environmentName(name: OptionName): string {
  const option: OptionSpec = options[name];
  return option.environment ?? `MOE_${option.name.replaceAll('-', '_').toUpperCase()}`;
}

function isBackendSetting(setting: ScopedSetting): setting is ScopedSetting & BackendSetting {
  return setting.option !== 'numerics';
}

/** What an unscoped setting says about backends; the source's text gains the value. */
function backendSettingsOf(name: OptionName, value: unknown, raw: RawSetting, source: PreferenceSource): BackendSetting[] {
  const said = (text: string): PreferenceSource => ({
    ...source,
    text: `${source.text}${source.type === 'environment' ? '=' : ' '}${text}`,
  });
  if (name === 'speculativeConfig') return draftSettings(value as DraftBackends, said(String(raw)));
  if (name !== 'moeBackend' && name !== 'linearBackend') return [];
  const option = name === 'moeBackend' ? 'moe-backend' : 'linear-backend';
  return (value as readonly string[]).map((names) => ({ option, scope: undefined, value: names, source: said(names) }));
}

function parseFrom<T>(option: OptionSpec<T>, raw: RawSetting, source: PreferenceSource): T {
  try {
    return option.parse(raw);
  } catch (cause) {
    throw new MoeError('MOE_USAGE', `${source.text}: ${messageOf(cause)}`, { setting: option.name, source: source.type }, { cause });
  }
}

interface FileSettings {
  readonly settings: Readonly<Partial<Record<OptionName, RawSetting>>>;
  readonly scoped: readonly ScopedSetting[];
}

const takingObjects: readonly string[] = [options.moeBackend, options.linearBackend, options.speculativeConfig].map(({ name }) => name);

/** JSON with flag names as keys, with dashes or underscores: `{"port": 9000, "max_model_len": 4096, "moe-backend.fp8": "cutlass", "linear-backend": {"fp8": "cutlass"}}`. */
function readConfigFile(file: string): FileSettings {
  const fail = (message: string, cause?: unknown): MoeError =>
    new MoeError('MOE_USAGE', `--config ${file}: ${message}`, { file }, { cause });
  let content: unknown;
  try {
    content = JSON.parse(readFileSync(file, 'utf8'));
  } catch (cause) {
    throw fail(messageOf(cause), cause);
  }
  if (typeof content !== 'object' || content === null || Array.isArray(content))
    throw fail('expected a JSON object with flag names as keys');
  const byFlag = new Map(optionNames.map((name): [string, OptionName] => [options[name].name, name]));
  const settings: Partial<Record<OptionName, RawSetting>> = {};
  const scoped: ScopedSetting[] = [];
  for (const [key, written] of Object.entries(content as Record<string, unknown>)) {
    if (written === null) continue;
    const flagName = key.replaceAll('_', '-');
    const scope = parseScopedFlag(`--${flagName}`);
    // Objects are for kernels alone; they are read as their JSON, as on the command line.
    const isAboutBackends = scope !== undefined || takingObjects.includes(flagName);
    const value = isAboutBackends && typeof written === 'object' && !Array.isArray(written) ? JSON.stringify(written) : written;
    const isList = Array.isArray(value) && value.every((entry) => typeof entry === 'string');
    if (typeof value !== 'string' && typeof value !== 'number' && typeof value !== 'boolean' && !isList) {
      throw fail(`${key}: expected text, a number, true, false or a list of texts`);
    }
    if (scope !== undefined) {
      scoped.push({ ...scope, value: String(value), source: { type: 'file', text: `${file}: ${key} ${String(value)}` } });
      continue;
    }
    const positive = byFlag.get(flagName);
    const negative = flagName.startsWith('no-') ? byFlag.get(flagName.slice(3)) : undefined;
    if (positive !== undefined) settings[positive] = value;
    else if (negative !== undefined && typeof value === 'boolean') settings[negative] = !value;
    else throw fail(`there is no setting ${JSON.stringify(key)}; keys are the names of flags without dashes in front`);
  }
  return { settings, scoped };
}
