import 'reflect-metadata';
import { container as rootContainer, type DependencyContainer } from 'tsyringe';
import type { LinearBackend, MoeBackend } from './backend.js';
import { MoeError, isMoeError, messageOf } from './errors.js';
import { createHooks, createStagedHooks, narrowingOf, type Hooks } from './hooks.js';
import { eraseLinearBackend, eraseMoeBackend, type ErasedLinearBackend, type ErasedMoeBackend } from './oracle/erased-backend.js';
import { plan } from './oracle/plan.js';
import type { Plan, PlanRequest } from './oracle/plan-types.js';
import { validateBackend } from './oracle/validate-backend.js';
import { PLUGIN, contractVersion, type Plugin } from './plugin.js';
import type { SchemeKey } from './quant/quant-scheme.js';
import { CLOCK, LINEAR_BACKEND, LOGGER, MOE_BACKEND, silentLogger, systemClock, type Logger } from './tokens.js';

/** What a plugin's `apply` is given, and what the composition root keeps: registered backends, hooks, and a container for their parts. */
export interface PluginHost {
  /**
   * For a plugin: a container of its own, below the engine's. It finds LOGGER and CLOCK there; what it registers as MOE_BACKEND or LINEAR_BACKEND
   * joins the registry when `apply` has ended, everything else stays its own.
   */
  readonly container: DependencyContainer;
  readonly hooks: Hooks;
  /** @throws {MoeError} MOE_PLUGIN_RULE naming the faulty field; MOE_PLUGIN_DUPLICATE when the name is taken. */
  readonly addMoeBackend: <S extends SchemeKey>(backend: MoeBackend<S>) => void;
  /** As {@link PluginHost.addMoeBackend}. One name may stand for one backend of either kind. */
  readonly addLinearBackend: <S extends SchemeKey>(backend: LinearBackend<S>) => void;
  readonly moeBackends: readonly ErasedMoeBackend[];
  readonly linearBackends: readonly ErasedLinearBackend[];
  readonly plugins: readonly PluginInfo[];
}

/** A loaded plugin. */
export interface PluginInfo {
  readonly name: string;
  readonly version: string;
  /** Where it was found, as the composition root says it: a package name or a path. */
  readonly source: string;
  readonly moeBackends: readonly string[];
  readonly linearBackends: readonly string[];
}

export interface PluginHostOptions {
  /** Parent of the host's container; left out = tsyringe's root. The host always makes a child of it, so engines do not meet. */
  readonly container?: DependencyContainer;
  readonly logger?: Logger;
}

/** What a host holds, and what a plugin has registered so far while its `apply` runs. */
interface Registry {
  readonly moe: ErasedMoeBackend[];
  readonly linear: ErasedLinearBackend[];
  readonly plugins: PluginInfo[];
}

/** Behind each host, the registry that {@link loadPlugin} commits to. */
const registries = new WeakMap<PluginHost, Registry>();

/** Makes an empty host with a child container, LOGGER and CLOCK registered in it. */
export function createPluginHost(options: PluginHostOptions = {}): PluginHost {
  const container = (options.container ?? rootContainer).createChildContainer();
  const logger = options.logger ?? silentLogger;
  container.register(LOGGER, { useValue: logger });
  if (!container.isRegistered(CLOCK, true)) container.register(CLOCK, { useValue: systemClock });
  const registry: Registry = { moe: [], linear: [], plugins: [] };
  const host = hostOver(registry, registry, container, createHooks(logger), 'the host');
  registries.set(host, registry);
  return host;
}

/**
 * Checks and applies one plugin. All or nothing: when anything fails, what it had registered and tapped is as if it had never been there, so a
 * broken plugin costs its own kernels and nothing else. Call it for one plugin after the other.
 *
 * @param candidate - the default export of a module; anything at all.
 * @param source - where it came from, for messages.
 * @throws {MoeError} MOE_PLUGIN_LOAD (not a plugin, or its `apply` failed: `cause`), MOE_PLUGIN_CONTRACT (built for another contract version),
 *   MOE_PLUGIN_DUPLICATE (the name of the plugin or of a backend is taken), MOE_PLUGIN_RULE (a backend describes itself wrongly).
 */
export async function loadPlugin(host: PluginHost, candidate: unknown, source: string): Promise<PluginInfo> {
  const registry = registries.get(host);
  if (registry === undefined)
    throw new MoeError('MOE_INTERNAL', 'loadPlugin() takes a host made by createPluginHost(), not the one a plugin is given.');
  const plugin = checkPlugin(candidate, source);
  const namesake = registry.plugins.find(({ name }) => name === plugin.name);
  if (namesake !== undefined) {
    throw new MoeError(
      'MOE_PLUGIN_DUPLICATE',
      `The plugin name "${plugin.name}" (${source}) is taken by ${namesake.source}; remove one of the two.`,
      {
        plugin: plugin.name,
        source,
        takenBy: namesake.source,
      },
    );
  }

  const staged: Registry = { moe: [], linear: [], plugins: registry.plugins };
  const container = host.container.createChildContainer();
  const hooks = createStagedHooks();
  const stage = hostOver(staged, registry, container, hooks, plugin.name);
  try {
    await plugin.apply(stage);
    if (container.isRegistered(MOE_BACKEND))
      for (const backend of container.resolveAll<unknown>(MOE_BACKEND)) stage.addMoeBackend(backend as MoeBackend<never>);
    if (container.isRegistered(LINEAR_BACKEND))
      for (const backend of container.resolveAll<unknown>(LINEAR_BACKEND)) stage.addLinearBackend(backend as LinearBackend<never>);
  } catch (error) {
    if (isMoeError(error) && error.family === 'plugin') throw error;
    throw new MoeError(
      'MOE_PLUGIN_LOAD',
      `The plugin "${plugin.name}" (${source}) failed while it was applied: ${messageOf(error)}. The server goes on without it.`,
      { plugin: plugin.name, version: plugin.version, source },
      { cause: error },
    );
  }

  for (const backend of staged.moe) host.container.register(MOE_BACKEND, { useValue: backend.implementation });
  for (const backend of staged.linear) host.container.register(LINEAR_BACKEND, { useValue: backend.implementation });
  registry.moe.push(...staged.moe);
  registry.linear.push(...staged.linear);
  moveTaps(hooks, host.hooks);
  const info: PluginInfo = Object.freeze({
    name: plugin.name,
    version: plugin.version,
    source,
    moeBackends: staged.moe.map(({ name }) => name),
    linearBackends: staged.linear.map(({ name }) => name),
  });
  registry.plugins.push(info);
  host.hooks.pluginLoaded.call(info);
  return info;
}

/** Plans with the host's backends and taps, and tells the `planned` hook. */
export function planWith(host: PluginHost, request: Omit<PlanRequest, 'moeBackends' | 'linearBackends' | 'narrow'>): Plan {
  const narrow = narrowingOf(host.hooks);
  const made = plan({
    ...request,
    moeBackends: host.moeBackends,
    linearBackends: host.linearBackends,
    ...(narrow === undefined ? {} : { narrow }),
  });
  host.hooks.planned.call(made);
  return made;
}

/** @param target - where additions go. @param known - what is registered already; names must be free there too. */
function hostOver(target: Registry, known: Registry, container: DependencyContainer, hooks: Hooks, plugin: string): PluginHost {
  const claim = (kind: 'moe' | 'linear', candidate: unknown): void => {
    validateBackend(candidate, kind, plugin);
    const { name } = candidate as { readonly name: string };
    const taken = [...known[kind], ...target[kind]].find((one) => one.name === name);
    if (taken === undefined) return;
    throw new MoeError(
      'MOE_PLUGIN_DUPLICATE',
      `Plugin "${plugin}": a ${kind} backend named "${name}" is registered already, by plugin "${taken.plugin}".`,
      {
        plugin,
        backend: name,
        takenBy: taken.plugin,
      },
    );
  };
  return {
    container,
    hooks,
    addMoeBackend: (backend) => {
      claim('moe', backend);
      target.moe.push(eraseMoeBackend(backend, plugin));
    },
    addLinearBackend: (backend) => {
      claim('linear', backend);
      target.linear.push(eraseLinearBackend(backend, plugin));
    },
    get moeBackends() {
      return target === known ? [...target.moe] : [...known.moe, ...target.moe];
    },
    get linearBackends() {
      return target === known ? [...target.linear] : [...known.linear, ...target.linear];
    },
    get plugins() {
      return [...known.plugins];
    },
  };
}

function checkPlugin(candidate: unknown, source: string): Plugin {
  const fail = (what: string): never => {
    throw new MoeError(
      'MOE_PLUGIN_LOAD',
      `${source} is not a plugin: ${what}. A plugin is the default export, made by definePlugin() of @moe-server/core.`,
      { source },
    );
  };
  if (typeof candidate !== 'object' || candidate === null)
    return fail(`its default export is ${candidate === null ? 'null' : typeof candidate}`);
  const plugin = candidate as Partial<Plugin> & { readonly [PLUGIN]?: unknown };
  if (plugin[PLUGIN] !== true) return fail('its default export does not carry the brand');
  const { name, version, contract, apply } = plugin;
  if (typeof name !== 'string' || name === '') return fail('it has no name');
  if (typeof version !== 'string' || version === '') return fail(`"${name}" has no version`);
  if (contract !== contractVersion) {
    throw new MoeError(
      'MOE_PLUGIN_CONTRACT',
      `The plugin "${name}" ${version} (${source}) was built for contract version ${String(contract)}; this server has ${contractVersion}. Install a release of the plugin for contract ${contractVersion}.`,
      { plugin: name, version, source, contract, contractVersion },
    );
  }
  if (typeof apply !== 'function') return fail(`"${name}" has no apply()`);
  return plugin as Plugin;
}

/** Taps go to the real hooks in their order. */
function moveTaps(from: Hooks, to: Hooks): void {
  for (const name of ['candidates', 'planned', 'layerPrepared', 'pluginLoaded'] as const) {
    for (const tap of from[name].taps)
      to[name].tap({ name: tap.name, ...(tap.stage === undefined ? {} : { stage: tap.stage }) }, tap.fn as never);
  }
}
