import { MoeError, schemeFamily, schemeKeys } from '@moe-server/core';
import type { NumericsPolicy, Preference } from '@moe-server/core';

/**
 * Refuses settings for a scheme that nobody knows: a misspelt one would silently do nothing. To be asked once the plugins are loaded,
 * because they may bring schemes.
 *
 * @throws {MoeError} MOE_USAGE listing what is known.
 */
export function checkSchemes(preferences: readonly Preference[], numerics: NumericsPolicy | undefined): void {
  const keys = schemeKeys();
  const known = new Set([...keys, ...keys.map(schemeFamily)]);
  const check = (scheme: string | undefined, where: string): void => {
    if (scheme === undefined || known.has(scheme)) return;
    const message = `${where}: there is no scheme or family of schemes named ${scheme}; known are ${[...known].sort().join(', ')}`;
    throw new MoeError('MOE_USAGE', message, { scheme });
  };
  for (const { scope, source } of preferences) check(scope.scheme ?? scope.family, source.text);
  for (const scheme of Object.keys(numerics?.byScheme ?? {})) check(scheme, `--numerics.${scheme}`);
}
