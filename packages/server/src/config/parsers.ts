import { MoeError } from '@moe-server/core';

/** What a setting can be before it is parsed: text from a flag or the environment, JSON from a file. */
export type RawSetting = string | number | boolean | readonly string[];

/** Reads one setting. @throws {MoeError} MOE_USAGE with what was expected; the caller adds where it came from. */
export type SettingParser<T> = (raw: RawSetting) => T;

function expected(what: string, raw: RawSetting): MoeError {
  return new MoeError('MOE_USAGE', `expected ${what}, got ${JSON.stringify(raw)}`);
}

export const text: SettingParser<string> = (raw) => {
  if (typeof raw === 'string' && raw !== '') return raw;
  throw expected('text', raw);
};

/** A list in a file; flags that may be given several times; commas in the environment. */
export const texts: SettingParser<readonly string[]> = (raw) => {
  if (Array.isArray(raw) && raw.every((entry) => typeof entry === 'string' && entry !== '')) return raw as readonly string[];
  if (typeof raw === 'string' && raw !== '') return raw.split(',').map((entry) => entry.trim());
  throw expected('text or a list of it', raw);
};

/** As {@link texts}, but an object of scopes, as JSON, stays whole. */
export const backendNames: SettingParser<readonly string[]> = (raw) =>
  typeof raw === 'string' && raw.trimStart().startsWith('{') ? [raw] : texts(raw);

export const flag: SettingParser<boolean> = (raw) => {
  if (raw === true || raw === 'true' || raw === '1') return true;
  if (raw === false || raw === 'false' || raw === '0') return false;
  throw expected('true or false', raw);
};

/** A whole number, both ends inclusive. */
export function integer(min: number, max = Number.MAX_SAFE_INTEGER): SettingParser<number> {
  return (raw) => {
    const value = typeof raw === 'string' && /^-?\d+$/.test(raw) ? Number(raw) : raw;
    if (typeof value === 'number' && Number.isSafeInteger(value) && value >= min && value <= max) return value;
    const range = max === Number.MAX_SAFE_INTEGER ? `of at least ${String(min)}` : `from ${String(min)} to ${String(max)}`;
    throw expected(`a whole number ${range}`, raw);
  };
}

/** Tokens, `8192` or as vLLM has it `8k` (8000) and `8K` (8192). */
export const tokenCount: SettingParser<number> = (raw) => {
  const match = typeof raw === 'string' ? /^(\d+)([kK])?$/.exec(raw) : undefined;
  if (match === undefined) return integer(1)(raw);
  const factor = match?.[2] === 'k' ? 1000 : match?.[2] === 'K' ? 1024 : 1;
  return integer(1)(match === null ? raw : Number(match[1]) * factor);
};

export const seconds: SettingParser<number> = (raw) => {
  const value = typeof raw === 'string' && /^\d+(\.\d+)?$/.test(raw) ? Number(raw) : raw;
  if (typeof value === 'number' && value >= 0 && value <= 86_400) return value;
  throw expected('a number of seconds', raw);
};

const byteUnits: Readonly<Record<string, number>> = {
  '': 1,
  b: 1,
  k: 2 ** 10,
  kib: 2 ** 10,
  kb: 1e3,
  m: 2 ** 20,
  mib: 2 ** 20,
  mb: 1e6,
  g: 2 ** 30,
  gib: 2 ** 30,
  gb: 1e9,
  t: 2 ** 40,
  tib: 2 ** 40,
  tb: 1e12,
};

/** `1073741824`, `512M`, `1.5GiB` (powers of 1024), `2GB` (powers of 1000). */
export const bytes: SettingParser<number> = (raw) => {
  const match = /^(\d+(?:\.\d+)?) *([a-zA-Z]*)$/.exec(String(raw));
  const unit = byteUnits[(match?.[2] ?? '').toLowerCase()];
  const value = Math.floor(Number(match?.[1]) * (unit ?? Number.NaN));
  if (Number.isSafeInteger(value) && value > 0 && typeof raw !== 'boolean') return value;
  throw expected('a number of bytes such as 512M, 1.5GiB or 2GB', raw);
};

/** One of a few words. */
export function oneOf<const T extends string>(...choices: readonly T[]): SettingParser<T> {
  return (raw) => {
    const found = choices.find((choice) => choice === raw);
    if (found !== undefined) return found;
    throw expected(`one of ${choices.join(', ')}`, raw);
  };
}
