import { MoeError } from '../errors.js';
import type { KvCacheChoice, KvCacheDType, KvCacheScheme } from '../kv-cache.js';
import { resolveKvCacheDType } from '../kv-cache.js';
import type { ExpertGroupSpec, LinearSpec, ParallelPlacement } from '../layer-spec.js';
import { singleRank } from '../layer-spec.js';
import type { Checkpoint } from './checkpoint.js';
import { ConfigReader } from './config-reader.js';
import { deepseekV3 } from './families/deepseek-v3.js';
import type { ModelFamily } from './families/family.js';
import { gptOss } from './families/gpt-oss.js';
import { mixtral } from './families/mixtral.js';
import { qwen35Moe } from './families/qwen3-5-moe.js';
import { qwen3Moe } from './families/qwen3-moe.js';
import { ModelBuilder } from './model-builder.js';
import { Partition } from './partition.js';
import { parseQuantization } from './quantization/parse-quantization.js';

/** What a checkpoint is, layer by layer: everything the oracle is asked about. Plain data. */
export interface ModelDescription {
  /** `architectures[0]` of config.json. */
  readonly architecture: string;
  /** `model_type` of config.json. */
  readonly modelType: string;
  /** Decoder layers; prediction heads are not counted. */
  readonly numLayers: number;
  /** In the order of the layers; groups of one layer by their first expert. */
  readonly groups: readonly ExpertGroupSpec[];
  readonly linears: readonly LinearSpec[];
  /** How the checkpoint was calibrated to store keys and values. */
  readonly kvCacheScheme: KvCacheScheme;
  /** How keys and values will be stored: what `linears` say of it holds for a cache of this type alone. */
  readonly kvCacheDType: KvCacheDType;
  /** For people: who quantized it and how. */
  readonly quantization: string;
  /** Why a prediction head that lies in the checkpoint cannot be used; its layers are left out then. */
  readonly draftProblem: string | undefined;
}

const families: readonly ModelFamily[] = [qwen3Moe, mixtral, gptOss, deepseekV3, qwen35Moe];

/** Architectures that {@link describeModel} knows. */
export const knownArchitectures: readonly string[] = families.flatMap(({ architectures }) => architectures);

/**
 * Names all expert groups and linears of a checkpoint with their schemes and sizes, from config.json, the quantization config and the
 * tensor headers; no weight is read. Configuration and tensors must agree.
 *
 * With `parallel` the sizes and experts are those of one rank: tensor parallel cuts attention, dense layers, the vocabulary projection and
 * experts; an expert parallel size above 1 spreads whole experts instead of cutting them. For planning: weights are read for one rank only.
 *
 * `kvCache` is how somebody wants keys and values stored, by default as the checkpoint says; linears that make them know it.
 *
 * @throws {MoeError} MOE_UNSUPPORTED_ARCHITECTURE, MOE_UNSUPPORTED_QUANTIZATION, MOE_UNSUPPORTED_PARALLEL naming the sizes that do not divide, MOE_CHECKPOINT_CONFIG naming the field, MOE_CHECKPOINT_TENSOR
 *   naming up to ten tensors that are missing or are not what the configuration says.
 */
export function describeModel(
  checkpoint: Checkpoint,
  { parallel = singleRank, kvCache = 'auto' }: { readonly parallel?: ParallelPlacement; readonly kvCache?: KvCacheChoice } = {},
): ModelDescription {
  const config = ConfigReader.of(checkpoint.config);
  const modelType = typeof checkpoint.config.model_type === 'string' ? checkpoint.config.model_type : config.string('model_type', '');
  const architecture = config.optionalStrings('architectures')?.[0];
  const family = findFamily(architecture, modelType);
  const quantization = parseQuantization(checkpoint.config, checkpoint.hfQuantConfig);
  const { kvCacheScheme } = quantization;
  const kvCacheDType = resolveKvCacheDType(kvCache, kvCacheScheme);
  const builder = new ModelBuilder(checkpoint, quantization, new Partition(parallel), kvCacheDType);
  const numLayers = family.describe(builder, config);
  const draftProblem = builder.finish()?.message;
  return {
    architecture: architecture ?? family.architectures[0] ?? '',
    modelType,
    numLayers,
    groups: builder.groups,
    linears: builder.linears,
    kvCacheScheme,
    kvCacheDType,
    quantization: quantization.summary,
    draftProblem,
  };
}

function findFamily(architecture: string | undefined, modelType: string): ModelFamily {
  const family = families.find(({ architectures, modelTypes }) =>
    architecture === undefined ? modelTypes.includes(modelType) : architectures.includes(architecture),
  );
  if (family !== undefined) return family;
  throw new MoeError(
    'MOE_UNSUPPORTED_ARCHITECTURE',
    `config.json: the architecture ${architecture ?? `of model_type "${modelType}"`} is not known. Known are ${knownArchitectures.join(', ')}.`,
    { file: 'config.json', field: 'architectures', architecture: architecture ?? null, modelType, supported: knownArchitectures },
  );
}
