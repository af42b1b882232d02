import { SyncHook, SyncWaterfallHook } from 'tapable';
import { messageOf } from './errors.js';
import type { LayerSpec } from './layer-spec.js';
import type { CandidateInfo, LayerPlan, NarrowedCandidates, Plan } from './oracle/plan-types.js';
import type { PluginInfo } from './plugin-host.js';
import type { Logger } from './tokens.js';

/**
 * Moments at which a plugin is told, or may narrow. All are synchronous; none lies on the way of a token. A tap that throws is logged with its
 * name and skipped: it cannot keep the server from starting.
 */
export interface Hooks {
  /**
   * Waterfall, may only narrow. The rules that cover a layer, before one is chosen; called for every layer once anybody taps. Return those
   * that should stay, or nothing to keep all. What a tap adds is dropped with a warning; what it removes is refused in the plan in its name.
   * Must be pure: the plan is expected to depend on its request alone.
   */
  readonly candidates: SyncWaterfallHook<[candidates: readonly CandidateInfo[], layer: LayerSpec]>;
  /** Sync. A plan was made; also one that leaves layers unserved. */
  readonly planned: SyncHook<[plan: Plan]>;
  /** Sync. A layer's weights are packed and its kernels exist. */
  readonly layerPrepared: SyncHook<[layer: LayerPlan, residentBytes: number]>;
  /** Sync. A plugin's `apply` has ended well and its backends are registered. */
  readonly pluginLoaded: SyncHook<[plugin: PluginInfo]>;
}

/** Which tap removed a candidate. Candidates are objects of one call, so one map serves all calls. */
const removedBy = new WeakMap<CandidateInfo, string>();

/** Hooks that only collect taps, for a plugin whose `apply` has not ended yet. */
export function createStagedHooks(): Hooks {
  return {
    candidates: new SyncWaterfallHook(['candidates', 'layer'], 'candidates'),
    planned: new SyncHook(['plan'], 'planned'),
    layerPrepared: new SyncHook(['layer', 'residentBytes'], 'layerPrepared'),
    pluginLoaded: new SyncHook(['plugin'], 'pluginLoaded'),
  };
}

/** Hooks whose taps are contained: narrowing is enforced, and what a tap throws goes to the log. */
export function createHooks(logger: Logger): Hooks {
  const hooks = createStagedHooks();
  for (const name of ['planned', 'layerPrepared', 'pluginLoaded'] as const) {
    hooks[name].intercept({
      register: (tap) => ({ ...tap, fn: contained(tap.fn, () => undefined, { hook: name, tap: tap.name }, logger) }),
    });
  }
  hooks.candidates.intercept({
    register: (tap) => {
      const where = { hook: 'candidates', tap: tap.name };
      const run = contained(tap.fn, (given: readonly CandidateInfo[]) => given, where, logger);
      return {
        ...tap,
        fn: (given: readonly CandidateInfo[], layer: LayerSpec) => keepOnly(given, run(given, layer), layer, tap.name, logger),
      };
    },
  });
  return hooks;
}

/**
 * Runs the `candidates` taps on one layer, in the form that `plan` takes. Returns undefined when nobody taps, because the plan is faster
 * without being asked layer by layer.
 */
export function narrowingOf(hooks: Hooks): ((candidates: readonly CandidateInfo[], layer: LayerSpec) => NarrowedCandidates) | undefined {
  // Not isUsed(): the interceptor that contains the taps counts as a use.
  if (hooks.candidates.taps.length === 0) return undefined;
  return (candidates, layer) => ({ kept: hooks.candidates.call(Object.freeze([...candidates]), layer), removedBy });
}

function keepOnly(
  given: readonly CandidateInfo[],
  answer: unknown,
  layer: LayerSpec,
  tap: string,
  logger: Logger,
): readonly CandidateInfo[] {
  if (answer === undefined) return given;
  if (!Array.isArray(answer)) {
    logger.warn(
      { hook: 'candidates', tap, layer: layer.name },
      `${tap} answered the hook "candidates" with something that is not a list; ignored`,
    );
    return given;
  }
  const wanted = new Set<unknown>(answer);
  const kept = given.filter((candidate) => wanted.has(candidate));
  const added = answer.filter((candidate) => !given.some((one) => one === candidate));
  if (added.length > 0) {
    logger.warn(
      { hook: 'candidates', tap, layer: layer.name, added },
      `${tap} may narrow the candidates of ${layer.name}, not add to them; ${added.length} dropped`,
    );
  }
  for (const candidate of given) if (!wanted.has(candidate)) removedBy.set(candidate, tap);
  return Object.freeze(kept);
}

/** Wraps a tap so that what it throws is logged and `fallback` answers instead. */
function contained(
  // tapable types taps so.
  // eslint-disable-next-line @typescript-eslint/no-unsafe-function-type
  tap: Function,
  fallback: (...args: never[]) => unknown,
  where: Readonly<Record<string, string>>,
  logger: Logger,
): (...args: unknown[]) => unknown {
  return (...args) => {
    try {
      return Reflect.apply(tap, undefined, args) as unknown;
    } catch (error) {
      logger.warn({ ...where, error: messageOf(error) }, `A tap of the hook "${where.hook ?? ''}" failed and was skipped`);
      return fallback(...(args as never[]));
    }
  };
}
