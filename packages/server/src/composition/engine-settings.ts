import type { KvCacheChoice, NumericsPolicy, Preference } from '@moe-server/core';

export interface PluginOptions {
  /** Names or paths of further plugins; one that cannot be used is an error. */
  readonly plugin?: readonly string[];
  /** False: nothing but the built-in plugins and the named ones. Default true. */
  readonly plugins?: boolean;
  /** Where discovery begins; default: the working directory. */
  readonly directory?: string;
}

export interface DeviceOptions {
  /** Default cpu. */
  readonly device?: 'cpu' | 'reference';
  /** Default: one per available processor. */
  readonly threads?: number | undefined;
  /** Device whose kernels are simulated, by a name that `plan --as` takes. */
  readonly simulate?: string | undefined;
}

export interface PlanOptions {
  /** Default 512. */
  readonly maxNumBatchedTokens?: number;
  readonly preferences?: readonly Preference[];
  readonly numericsPolicy?: NumericsPolicy;
  /** Only kernels whose results for a row do not depend on the batch. Default false. */
  readonly batchInvariant?: boolean;
}

/** Settings of an engine, by the names of the flags. Plain data: it crosses the process border. */
export interface EngineSettings extends PluginOptions, DeviceOptions, PlanOptions {
  /** Folder of the checkpoint. */
  readonly model: string;
  /** Default: what the model allows, or less where the KV cache is smaller. */
  readonly maxModelLen?: number | undefined;
  /** Default 64. */
  readonly maxNumSeqs?: number;
  readonly kvCacheDtype?: KvCacheChoice;
  /** Default: what `maxNumSeqs` sequences can use, as far as memory is free. */
  readonly kvCacheMemoryBytes?: number | undefined;
  readonly enablePrefixCaching?: boolean;
  readonly seed?: number | undefined;
  readonly generationConfig?: 'auto' | 'vllm';
  /** File with a kept plan that must still hold. */
  readonly plan?: string | undefined;
  /** Check every kernel against the reference before it serves. Default true. */
  readonly verifyKernels?: boolean;
  /** Where to remember which kernels were checked; left out = nowhere. */
  readonly cacheDir?: string | undefined;
  /** Keep packed weights in `cacheDir`, and restore them from there. Default false. */
  readonly packedWeightsCache?: boolean;
  /** Rank kernels by what `moe-server calibrate` kept in `cacheDir`. Default false. */
  readonly calibration?: boolean;
}
