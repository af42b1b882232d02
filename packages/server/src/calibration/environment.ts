import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { canonicalJson, contractVersion, loadedNativeAddons } from '@moe-server/core';
import type { DeviceInfo, PluginHost } from '@moe-server/core';

/** What times depend on, as far as it can be seen without taking them again. */
export interface CalibrationEnvironment {
  readonly device: Readonly<Record<string, unknown>>;
  readonly plugins: readonly { readonly name: string; readonly version: string; readonly source: string }[];
  /** SHA-256 (hex) of every native addon of ours and of plugins, by package. */
  readonly addons: Readonly<Record<string, string>>;
  readonly contractVersion: number | string;
}

/** Asks every rule whether its kernel is there, so that addons that are loaded at first use are loaded; then looks. */
export function describeEnvironment(host: PluginHost, device: DeviceInfo): CalibrationEnvironment {
  for (const backend of [...host.moeBackends, ...host.linearBackends]) {
    for (const { id } of backend.rules) {
      try {
        backend.missing(id);
      } catch {
        // The oracle asks again and keeps the reason.
      }
    }
  }
  return {
    device:
      device.type === 'cpu'
        ? {
            type: device.type,
            name: device.name,
            architecture: device.architecture,
            features: [...device.features].sort(),
            numThreads: device.numThreads,
          }
        : { type: device.type, name: device.name, sm: device.sm },
    plugins: host.plugins
      .map(({ name, version, source }) => ({ name, version, source }))
      .sort((a, b) => (a.name < b.name ? -1 : Number(a.name > b.name))),
    addons: Object.fromEntries([...loadedNativeAddons()].map(([packageName, file]) => [packageName, hashOf(file)])),
    contractVersion,
  };
}

/** Times hold for equal fingerprints only. */
export function fingerprintOf(environment: CalibrationEnvironment): string {
  return createHash('sha256').update(canonicalJson(environment)).digest('hex').slice(0, 32);
}

function hashOf(file: string): string {
  return createHash('sha256').update(readFileSync(file)).digest('hex');
}
