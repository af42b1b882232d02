import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import {
  Checkpoint,
  checkLock,
  createPluginHost,
  describeModel,
  deviceProfile,
  explainBrokenLock,
  explainUnserved,
  isMoeError,
  KernelVerification,
  loadPlugin,
  messageOf,
  MoeError,
  openPackedCache,
  openVerifiedKernels,
  planWith,
  silentLogger,
  verifiedInMemory,
} from '@moe-server/core';
import type { DeviceInfo, Evidence, Logger, ModelDescription, PackedCache, Plan, PluginHost, VerifiedKernels } from '@moe-server/core';
import {
  cpuDeviceProblem,
  createCpuDevice,
  createKernelRunner,
  createTypescriptDevice,
  Engine,
  KvCache,
  kvBlockSize,
  loadModel,
  ModelRunner,
  readGenerationDefaults,
  readModelConfig,
  stepLimitsFor,
} from '@moe-server/engine';
import type { Device, LoadedModel, LoadProgress, ModelConfig } from '@moe-server/engine';
import { readCalibration } from '../calibration/calibration-file.js';
import { resolveBackendNames } from '../config/backend-names.js';
import { checkSchemes } from '../config/known-schemes.js';
import { options } from '../config/options.js';
import type { ModelInfo } from '../engine/engine-protocol.js';
import { discoverPlugins, importPlugin } from './discover-plugins.js';
import type { PluginCandidate } from './discover-plugins.js';
import type { DeviceOptions, EngineSettings, PlanOptions, PluginOptions } from './engine-settings.js';
import { openPlanFile } from './kept-plan.js';
import { sizeKvCache } from './kv-memory.js';
import { planAndLoad } from './plan-and-load.js';
import { seedSequence } from './seed-sequence.js';

/**
 * The composition root: the only place that names backends and that knows both them and the engine.
 *
 * ```ts
 * const { engine, dispose } = await createEngine({ model: 'path/to/checkpoint' });
 * engine.onEvent(console.log);
 * engine.start();
 * engine.addRequest({ id: 'a', promptTokenIds: [1, 2, 3], sampling });
 * await engine.drain();
 * await dispose();
 * ```
 */

/** Plugins that belong to the server. A missing one is a problem to report, not a reason to stop. */
export const builtInPlugins: readonly string[] = [
  '@moe-server/backend-cpu',
  '@moe-server/backend-b12x',
  '@moe-server/backend-cutlass',
  '@moe-server/backend-triton',
];

/** Whom to tell while an engine is made. */
export interface EngineObserver {
  readonly log?: Logger;
  readonly onPlugins?: (host: PluginHost, problems: readonly string[]) => void;
  /** Again, when a kernel was refused and another plan was made. */
  readonly onPlan?: (plan: Plan, description: ModelDescription, config: ModelConfig) => void;
  /** A kernel was refused while the model was loaded: a sentence with the numbers. */
  readonly onRefused?: (sentence: string) => void;
  readonly onProgress?: (progress: LoadProgress) => void;
  readonly signal?: AbortSignal;
}

export interface ComposedEngine {
  readonly engine: Engine;
  readonly info: ModelInfo;
  /** For tests and measurements; the engine drives it. */
  readonly runner: ModelRunner;
  /** Ends the engine, then frees kernels, weights and the device. */
  readonly dispose: () => Promise<void>;
}

/** A host with all plugins that could be loaded, and a sentence for each that could not. */
export interface LoadedPlugins {
  readonly host: PluginHost;
  readonly problems: readonly string[];
}

/** @throws {MoeError} MOE_PLUGIN_… for a plugin that was named and cannot be used. */
export async function loadPlugins(settings: PluginOptions & DeviceOptions, log: Logger = silentLogger): Promise<LoadedPlugins> {
  const host = createPluginHost({ logger: log });
  const problems: string[] = [];
  const discovery = { directory: settings.directory ?? process.cwd(), named: settings.plugin ?? [], isEnabled: settings.plugins ?? true };
  // The reference device runs plain functions only; a built-in plugin with native kernels would take its layers for nothing.
  const builtIn = settings.device === 'reference' ? [] : builtInPlugins;
  const candidates: PluginCandidate[] = [
    ...builtIn.map((source) => ({ source, url: source, isRequired: false })),
    ...discoverPlugins(discovery, builtInPlugins),
  ];
  for (const candidate of candidates) {
    try {
      await loadPlugin(host, await importPlugin(candidate), candidate.source);
    } catch (thrown) {
      if (candidate.isRequired || !isMoeError(thrown)) throw thrown;
      problems.push(messageOf(thrown));
      log.warn({ plugin: candidate.source, err: thrown }, 'plugin cannot be used');
    }
  }
  if (settings.device === 'reference') {
    // Test equipment, not a plugin of the product: loaded only for the device that runs nothing else.
    const { referencePlugin } = await import('@moe-server/core/conformance');
    await loadPlugin(host, referencePlugin, '@moe-server/core/conformance');
  }
  return { host, problems };
}

/** @throws {MoeError} MOE_PLUGIN_ADDON when the native code of the device cannot be loaded. */
export function createDevice({ device = 'cpu', threads, simulate, numericsPolicy }: DeviceOptions & PlanOptions): Device {
  // Simulated kernels are plain functions, and a step of those gains nothing from native code around them.
  if (device === 'reference' || simulate !== undefined) return createTypescriptDevice();
  return createCpuDevice({
    ...(threads === undefined ? {} : { numThreads: threads }),
    ...(numericsPolicy?.default === 'float32' ? { numerics: 'float32' } : {}),
  });
}

/** The device that a plan is for; where the native code is missing, what can be said of this machine without it. */
export function describeThisDevice(settings: DeviceOptions): { readonly info: DeviceInfo; readonly problem: string | undefined } {
  const problem = settings.device === 'reference' ? undefined : cpuDeviceProblem();
  if (problem === undefined) {
    const device = createDevice(settings);
    device.dispose();
    return { info: device.info, problem };
  }
  const architecture = process.arch === 'x64' || process.arch === 'arm64' ? process.arch : 'other';
  const numThreads = settings.threads ?? availableParallelism();
  return { info: { type: 'cpu', name: 'this processor', architecture, features: [], numThreads, memoryBytes: undefined }, problem };
}

/** As on the command line. */
const defaultBatchedTokens = options.maxNumBatchedTokens.default;
const defaultNumSeqs = options.maxNumSeqs.default;

/** Asks every backend about every layer. Reads nothing. @throws {MoeError} MOE_USAGE for a setting about a scheme or backend that nobody knows. */
export function makePlan(
  host: PluginHost,
  description: ModelDescription,
  device: DeviceInfo,
  settings: PlanOptions,
  assumeBuilt = false,
  evidence: Evidence = {},
): Plan {
  checkSchemes(settings.preferences ?? [], settings.numericsPolicy);
  const { preferences, notices } = resolveBackendNames(settings.preferences ?? [], host);
  const plan = planWith(host, {
    layers: [...description.groups, ...description.linears],
    device,
    maxNumTokens: settings.maxNumBatchedTokens ?? defaultBatchedTokens,
    assumeBuilt,
    evidence,
    preferences,
    ...(settings.numericsPolicy === undefined ? {} : { numerics: settings.numericsPolicy }),
    ...(settings.batchInvariant === true ? { requirements: { batchInvariant: true } } : {}),
  });
  return notices.length === 0 ? plan : { ...plan, notices: [...notices, ...plan.notices] };
}

/**
 * Makes an engine: plugins, checkpoint, plan, weights, KV cache, scheduler. It does not run yet: call `engine.start()`.
 *
 * @throws {MoeError} whatever stands in the way, by family: checkpoint, unsupported, plugin, capacity, usage.
 */
export async function createEngine(settings: EngineSettings, observer: EngineObserver = {}): Promise<ComposedEngine> {
  const { log = silentLogger, onPlugins, onPlan, onRefused, onProgress, signal } = observer;
  const { maxNumSeqs = defaultNumSeqs, maxNumBatchedTokens = defaultBatchedTokens } = settings;
  if (maxNumSeqs > maxNumBatchedTokens) {
    const message =
      `--max-num-batched-tokens ${String(maxNumBatchedTokens)} is less than --max-num-seqs ${String(maxNumSeqs)}: every running sequence ` +
      `needs a token of each step. Raise the one or lower the other.`;
    throw new MoeError('MOE_USAGE', message, { maxNumSeqs, maxNumBatchedTokens });
  }
  if (settings.simulate !== undefined && settings.device === 'reference') {
    const message = `--simulate ${settings.simulate} and --device reference contradict each other: a simulated device runs its own kernels' arithmetic. Leave one out.`;
    throw new MoeError('MOE_USAGE', message, { simulate: settings.simulate });
  }
  const { host, problems } = await loadPlugins(settings, log);
  onPlugins?.(host, problems);
  const checkpoint = await Checkpoint.open(settings.model);
  const cleanups: (() => void)[] = [];
  try {
    const config = await readModelConfig(checkpoint);
    const description = describeModel(checkpoint, { kvCache: settings.kvCacheDtype ?? 'auto' });
    const device = createDevice(settings);
    cleanups.unshift(device.dispose);
    const isSimulated = settings.simulate !== undefined;
    const planned = settings.simulate === undefined ? device.info : deviceProfile(settings.simulate);
    const shape = {
      dtype: description.kvCacheDType,
      numLayers: config.numLayers,
      numKvHeads: config.numKvHeads,
      headDim: config.headDim,
      blockSize: kvBlockSize,
    };
    const check = await checkOfKernels(settings, host, device, log);
    const packedCache = isSimulated ? undefined : await packedWeightsCache(settings, checkpoint, host, log);
    const calibration = isSimulated ? {} : await readCalibration(settings, host, device.info, log);
    const { plan, loaded, limits, maxModelLen, numBlocks } = await planAndLoad({
      plan: (quarantined) => {
        const made = makePlan(host, description, planned, settings, isSimulated, {
          ...calibration,
          quarantined: [...quarantined, ...(calibration.quarantined ?? [])],
        });
        if (settings.plan !== undefined) requireKept(settings.plan, made);
        requireServable(made);
        onPlan?.(made, description, config);
        return made;
      },
      load: async (plan) => {
        const { maxModelLen, numBlocks } = sizeKvCache({
          shape,
          maxNumSeqs,
          maxModelLen: settings.maxModelLen,
          maxContextLength: config.maxContextLength,
          askedBytes: settings.kvCacheMemoryBytes,
          availableBytes: device.info.memoryBytes,
          weightBytes: plan.bytes.requiredBytes,
        });
        const limits = stepLimitsFor({ maxNumSeqs, maxNumBatchedTokens, maxModelLen, blockSize: kvBlockSize, vocabSize: config.vocabSize });
        const loaded: LoadedModel = await loadModel({
          checkpoint,
          description,
          plan,
          host,
          device,
          config,
          maxNumTokens: limits.maxNumTokens,
          maxPositions: maxModelLen,
          simulate: isSimulated,
          ...(check === undefined ? {} : { verification: check.verification }),
          ...(packedCache === undefined ? {} : { packedCache }),
          ...(onProgress === undefined ? {} : { onProgress }),
          ...(signal === undefined ? {} : { signal }),
        });
        return { plan, loaded, limits, maxModelLen, numBlocks };
      },
      onRefused: (sentence) => {
        log.error({}, sentence);
        onRefused?.(sentence);
      },
    });
    cleanups.unshift(loaded.dispose);
    await check?.verified.save();
    if (packedCache !== undefined) logPackedCache(packedCache, log);
    const cache = KvCache.allocate(device, shape, numBlocks, loaded.kvScales);
    const runner = new ModelRunner({ device, model: loaded.model, cache, limits });
    const generation = settings.generationConfig === 'vllm' ? undefined : await checkpoint.json('generation_config.json');
    const enablePrefixCaching = settings.enablePrefixCaching ?? true;
    const engine = new Engine({
      runner,
      numBlocks,
      blockSize: kvBlockSize,
      maxModelLen,
      eosTokenIds: config.eosTokenIds,
      maxNumSeqs,
      maxNumBatchedTokens,
      enablePrefixCaching,
      ...(settings.seed === undefined ? {} : { randomSeed: seedSequence(settings.seed) }),
    });
    const info: ModelInfo = {
      architecture: config.architecture,
      quantization: description.quantization,
      device: isSimulated ? `${planned.name}, simulated` : device.info.name,
      vocabSize: config.vocabSize,
      maxModelLen,
      maxNumSeqs,
      maxNumBatchedTokens,
      weightBytes: loaded.residentBytes,
      generationDefaults: readGenerationDefaults(generation, config.eosTokenIds),
      kvCache: {
        dtype: shape.dtype,
        blockSize: kvBlockSize,
        numBlocks,
        bytes: cache.byteLength,
        isPrefixCachingEnabled: enablePrefixCaching,
      },
      plan,
    };
    return {
      engine,
      info,
      runner,
      dispose: async () => {
        await engine.stop();
        for (const cleanup of cleanups) cleanup();
      },
    };
  } catch (thrown) {
    for (const cleanup of cleanups) cleanup();
    throw thrown;
  } finally {
    await checkpoint.close();
  }
}

/** Simulated kernels and the reference device's are the reference itself. */
async function checkOfKernels(
  { verifyKernels = true, cacheDir, simulate, device: deviceName }: EngineSettings,
  { plugins }: PluginHost,
  device: Device,
  log: Logger,
): Promise<{ readonly verification: KernelVerification; readonly verified: VerifiedKernels } | undefined> {
  if (!verifyKernels || simulate !== undefined || deviceName === 'reference') return undefined;
  const verified = cacheDir === undefined ? verifiedInMemory() : await openVerifiedKernels(cacheDir, log);
  const verification = new KernelVerification({ runner: createKernelRunner(device), device: device.info, plugins, verified });
  return { verification, verified };
}

/** @throws {MoeError} MOE_CHECKPOINT_READ */
async function packedWeightsCache(
  { packedWeightsCache: isWanted = false, cacheDir }: EngineSettings,
  checkpoint: Checkpoint,
  { plugins }: PluginHost,
  logger: Logger,
): Promise<PackedCache | undefined> {
  if (!isWanted || cacheDir === undefined) return undefined;
  return openPackedCache({ directory: join(cacheDir, 'packed-weights'), checkpoint, plugins, logger });
}

function logPackedCache(cache: PackedCache, log: Logger): void {
  const { directory, numRestored, numSaved, savedBytes } = cache.counts();
  log.info(
    { directory, numRestored, numSaved, savedBytes },
    `packed weights: ${String(numRestored)} layers read, ${String(numSaved)} written`,
  );
}

/** @throws {MoeError} MOE_PLAN_FILE when the file is no plan, MOE_PLAN_MOVED naming the layers that would be served otherwise. */
function requireKept(file: string, plan: Plan): void {
  const changes = checkLock(openPlanFile(file, '--plan').plan, plan);
  if (changes.length > 0) throw explainBrokenLock(changes, file);
}

/** Layers of a draft head are planned and not run; only those of the model itself must be served. */
function requireServable(plan: Plan): void {
  const roles = new Map(plan.layers.map(({ name, role }) => [name, role]));
  const unserved = plan.unserved.filter((name) => roles.get(name) === 'target');
  if (unserved.length > 0) throw explainUnserved({ ...plan, layers: plan.layers.filter(({ role }) => role === 'target'), unserved });
  if (!plan.bytes.fits) throw explainUnserved({ ...plan, unserved: [] });
  // A plan that assumes every kernel built is one for simulation.
  if (plan.assumesBuilt) return;
  const missing = plan.layers.find(({ role, bindings }) => role === 'target' && bindings.some(({ built }) => !built));
  if (missing !== undefined) throw new MoeError('MOE_INTERNAL', `${missing.name} is bound to a kernel that is not built.`);
}
