import { schemeInfo } from '@moe-server/core';
import type { PreferenceScope, SchemeKey } from '@moe-server/core';

/**
 * The layers that a word after the dot selects: `draft` and `target` by role, a scheme key (`fp8.block128`) or a family (`fp8`) by scheme;
 * undefined selects all. Whether a scheme exists is known once the plugins are loaded: see known-schemes.ts.
 */
export function scopeOf(scope: string | undefined): PreferenceScope {
  if (scope === undefined) return {};
  if (scope === 'draft' || scope === 'target') return { role: scope };
  return scope.includes('.') || schemeInfo(scope) !== undefined ? { scheme: scope as SchemeKey } : { family: scope };
}
