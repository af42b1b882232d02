import type { PluginHost } from './plugin-host.js';

/** Version of everything in backend.ts, plugin.ts and hooks.ts. A plugin built for another one is refused by name. */
export const contractVersion = 1;

/**
 * What a plugin package exports by default.
 *
 * ```ts
 * export default definePlugin({
 *   name: 'b12x',
 *   version: '1.0.0',
 *   contract: contractVersion,
 *   apply: (host) => host.addMoeBackend(new B12xBackend()),
 * });
 * ```
 */
export interface Plugin {
  /** Unique among the loaded plugins. */
  readonly name: string;
  readonly version: string;
  /** The {@link contractVersion} it was built for. */
  readonly contract: number;
  /** Registers classes in the host's container and taps hooks. Called once, before the oracle; must not block. */
  readonly apply: (host: PluginHost) => void | Promise<void>;
}

export const PLUGIN: unique symbol = Symbol.for('moe.plugin') as never;

/** Marks an object as a plugin, so that the loader can tell one from any other default export. */
export function definePlugin(plugin: Plugin): Plugin {
  return Object.freeze({ ...plugin, [PLUGIN]: true });
}
