import { createHash } from 'node:crypto';
import type { DeviceInfo } from '../device-info.js';
import type { Plan } from './plan-types.js';

/** JSON with keys in order and without `undefined`, so that equal data gives equal text. */
export function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`;
  if (typeof value === 'object' && value !== null) {
    const entries = Object.entries(value)
      .filter(([, member]) => member !== undefined)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, member]) => `${JSON.stringify(key)}:${canonicalJson(member)}`);
    return `{${entries.join(',')}}`;
  }
  return value === undefined ? 'null' : JSON.stringify(value);
}

/**
 * SHA-256 over what was decided. Left out is what may differ between ranks or releases without another kernel being bound: sentences,
 * refusals, byte counts, the experts of a rank, what the KV cache rounds to, the device's brand string, memory and threads.
 */
export function planHash(plan: Pick<Plan, 'version' | 'device' | 'assumesBuilt' | 'maxNumTokens' | 'layers'>): string {
  const { version, device, assumesBuilt, maxNumTokens } = plan;
  const layers = plan.layers.map(({ name, kind, role, scheme, bindings }) => ({
    name,
    kind,
    role,
    scheme,
    bindings: bindings.map(({ because: _, ...decided }) => decided),
  }));
  return createHash('sha256')
    .update(canonicalJson({ version, device: capabilities(device), assumesBuilt, maxNumTokens, layers }))
    .digest('hex');
}

function capabilities(device: DeviceInfo): unknown {
  if (device.type === 'cuda') return { type: device.type, sm: device.sm };
  return { type: device.type, architecture: device.architecture, features: [...device.features].sort() };
}
