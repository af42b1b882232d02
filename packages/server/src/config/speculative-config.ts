import { MoeError } from '@moe-server/core';
import type { SettingParser } from './parsers.js';

/** What vLLM's `--speculative-config` says about kernels of the draft head; the rest of it is not supported. */
export interface DraftBackends {
  readonly moeBackend?: string;
  readonly linearBackend?: string;
}

const keys: Readonly<Record<string, keyof DraftBackends>> = { moe_backend: 'moeBackend', linear_backend: 'linearBackend' };

/** `{"moe_backend": "triton"}`. A key that would do nothing is refused, not ignored. */
export const speculativeConfig: SettingParser<DraftBackends> = (raw) => {
  const expected = `a JSON object with ${Object.keys(keys).join(' or ')}, such as {"moe_backend":"triton"}`;
  let content: unknown;
  try {
    content = JSON.parse(String(raw));
  } catch {
    content = undefined;
  }
  if (typeof content !== 'object' || content === null || Array.isArray(content)) {
    throw new MoeError('MOE_USAGE', `expected ${expected}, got ${JSON.stringify(raw)}`);
  }
  const backends: { -readonly [K in keyof DraftBackends]: string } = {};
  for (const [key, value] of Object.entries(content)) {
    const name = Object.hasOwn(keys, key) ? keys[key] : undefined;
    if (name === undefined) {
      throw new MoeError(
        'MOE_USAGE',
        `${JSON.stringify(key)} is not supported: draft heads are planned and do not run yet; expected ${expected}`,
      );
    }
    if (typeof value !== 'string' || value === '') {
      throw new MoeError('MOE_USAGE', `expected the name of a backend for ${JSON.stringify(key)}, got ${JSON.stringify(value)}`);
    }
    backends[name] = value;
  }
  return backends;
};
