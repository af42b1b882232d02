import { readScopedFlags } from '../src/config/backend-settings.js';
import { optionNames, options } from '../src/config/options.js';
import type { OptionName } from '../src/config/options.js';
import type { RawSetting } from '../src/config/parsers.js';
import { resolveConfig } from '../src/config/server-config.js';
import type { ServerConfig } from '../src/config/server-config.js';

/** The configuration of a command line whose flags all have values, as the command's own parser leaves it. */
export function parse(args: readonly string[], environment: Readonly<Record<string, string>> = {}, file?: string): ServerConfig {
  const { rest, scoped } = readScopedFlags(args);
  const flags: Partial<Record<OptionName, RawSetting>> = {};
  const words = rest.flatMap((word) => (word.startsWith('--') && word.includes('=') ? word.split(/=(.*)/s, 2) : [word]));
  for (let i = 0; i < words.length; i += 2) {
    const name = optionNames.find((one) => `--${options[one].name}` === words[i]);
    if (name === undefined) throw new RangeError(`there is no flag ${words[i] ?? ''}`);
    const value = words[i + 1] ?? '';
    const before = flags[name];
    flags[name] = options[name].isList === true ? [...(Array.isArray(before) ? (before as string[]) : []), value] : value;
  }
  return resolveConfig({ flags, scopedFlags: scoped, environment, file });
}
