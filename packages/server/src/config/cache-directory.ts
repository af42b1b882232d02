import { homedir } from 'node:os';
import { isAbsolute, join } from 'node:path';

/** Where the server keeps what it can compute again, as the XDG Base Directory Specification says: a relative path there counts as none. */
export function cacheDirectory(environment: Readonly<Record<string, string | undefined>>): string {
  const { XDG_CACHE_HOME: base } = environment;
  return join(base !== undefined && isAbsolute(base) ? base : join(homedir(), '.cache'), 'moe-server');
}
