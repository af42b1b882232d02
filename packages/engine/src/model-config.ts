import { ConfigReader, MoeError, sane } from '@moe-server/core';

/** Architectures that can run, as config.json names them in `architectures`. */
export const supportedArchitectures = ['Qwen3MoeForCausalLM', 'MixtralForCausalLM'] as const;

export type Architecture = (typeof supportedArchitectures)[number];

/**
 * What the engine needs to know of a model beside its weights. What concerns experts and quantization is in core's `describeModel`.
 * The snake_case of config.json and generation_config.json ends here.
 */
export interface ModelConfig {
  readonly architecture: Architecture;
  /** Rows of embedding and output head; may exceed what the tokenizer knows. */
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly rmsNormEps: number;
  /** Queries and keys are normalized per head before the rotary embedding. */
  readonly hasQkNorm: boolean;
  readonly rope: RopeConfig;
  /** A token sees only the last `slidingWindow` positions, its own included; 0 = all. */
  readonly slidingWindow: number;
  /** Positions the model can tell apart, with RoPE scaling counted in. */
  readonly maxContextLength: number;
  /** Layers with a dense MLP in place of experts, ascending. */
  readonly denseLayers: readonly number[];
  readonly bosTokenId: number | undefined;
  /** Any of these ends a generation. */
  readonly eosTokenIds: readonly number[];
  readonly samplingDefaults: SamplingDefaults;
}

/** What generation_config.json asks for; what it leaves out is undefined. `do_sample: false` is temperature 0. */
export interface SamplingDefaults {
  readonly temperature: number | undefined;
  readonly topK: number | undefined;
  readonly topP: number | undefined;
  readonly minP: number | undefined;
  readonly repetitionPenalty: number | undefined;
  readonly maxTokens: number | undefined;
}

export interface RopeConfig {
  /** Base of the frequencies. */
  readonly theta: number;
  readonly scaling: RopeScaling;
}

/** How the frequencies are stretched to a longer context, as transformers defines each. Positions count in tokens. */
export type RopeScaling =
  | { readonly type: 'default' }
  | { readonly type: 'linear'; readonly factor: number }
  | {
      readonly type: 'llama3';
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositions: number;
    }
  | {
      readonly type: 'yarn';
      readonly factor: number;
      readonly originalMaxPositions: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      /** Bounds of the ramp are rounded to whole dimensions. */
      readonly truncate: boolean;
      /** Factor on cosines and sines. */
      readonly attentionFactor: number;
    };

/** What is needed of core's `Checkpoint`. */
export interface ConfigSource {
  readonly config: Readonly<Record<string, unknown>>;
  readonly json: (file: string) => Promise<unknown>;
}

/**
 * Reads config.json and generation_config.json of a checkpoint.
 *
 * @throws {MoeError} MOE_UNSUPPORTED_ARCHITECTURE when the model, or an option of it, cannot run; MOE_CHECKPOINT_CONFIG when a field
 * is missing or of the wrong type.
 */
export async function readModelConfig(checkpoint: ConfigSource): Promise<ModelConfig> {
  return parseModelConfig(checkpoint.config, await checkpoint.json('generation_config.json'));
}

/** As {@link readModelConfig}, from parsed JSON; what of `generationConfig` is not an object counts as absent. */
export function parseModelConfig(config: Readonly<Record<string, unknown>>, generationConfig: unknown): ModelConfig {
  const fields = ConfigReader.of(config);
  const generation = ConfigReader.of(isRecord(generationConfig) ? generationConfig : {}, 'generation_config.json');
  const architecture = architectureOf(fields);
  const family = families[architecture];
  if (fields.boolean('attention_bias', false)) {
    throw unsupported(architecture, 'attention_bias', true, 'attention projections with a bias');
  }
  const activation = fields.string('hidden_act', 'silu');
  if (activation !== 'silu') throw unsupported(architecture, 'hidden_act', activation, 'an activation other than "silu"');
  const hiddenSize = fields.integer('hidden_size', sane.hiddenSize);
  const numHeads = fields.integer('num_attention_heads', sane.heads);
  const numKvHeads = fields.integer('num_key_value_heads', sane.heads, numHeads);
  const numLayers = fields.integer('num_hidden_layers', sane.layers);
  const headDim = fields.optionalInteger('head_dim', sane.headDim) ?? hiddenSize / numHeads;
  if (numHeads % numKvHeads !== 0)
    throw fields.error('num_key_value_heads', `a divisor of num_attention_heads (${String(numHeads)})`, numKvHeads);
  if (headDim % 2 !== 0) throw fields.error('head_dim', 'an even number, because the rotary embedding turns pairs', headDim);
  const maxPositions = fields.integer('max_position_embeddings', sane.positions);
  const rope = parseRope(fields, architecture, maxPositions, family.defaultRopeTheta);
  const vocabSize = fields.integer('vocab_size', sane.vocabulary);
  const rmsNormEps = fields.number('rms_norm_eps', family.defaultRmsNormEps);
  if (rmsNormEps < 0) throw fields.error('rms_norm_eps', 'a number that is not negative', rmsNormEps);
  return {
    architecture,
    vocabSize,
    hiddenSize,
    numLayers,
    numHeads,
    numKvHeads,
    headDim,
    rmsNormEps,
    hasQkNorm: family.hasQkNorm,
    rope,
    slidingWindow: family.slidingWindow(fields),
    maxContextLength: maxContextLengthOf(rope.scaling, maxPositions),
    denseLayers: family.denseLayers(fields, numLayers),
    bosTokenId: fields.optionalInteger('bos_token_id', tokenId),
    eosTokenIds: endTokenIds(generation, vocabSize) ?? endTokenIds(fields, vocabSize) ?? [],
    samplingDefaults: {
      temperature: generation.boolean('do_sample', true) ? optionalNumber(generation, 'temperature') : 0,
      topK: optionalNumber(generation, 'top_k'),
      topP: optionalNumber(generation, 'top_p'),
      minP: optionalNumber(generation, 'min_p'),
      repetitionPenalty: optionalNumber(generation, 'repetition_penalty'),
      maxTokens: optionalNumber(generation, 'max_new_tokens'),
    },
  };
}

function architectureOf(fields: ConfigReader): Architecture {
  const modelType = fields.optionalString('model_type');
  const name = fields.optionalStrings('architectures')?.[0];
  const known = supportedArchitectures.find((candidate) =>
    name === undefined ? families[candidate].modelType === modelType : candidate === name,
  );
  if (known !== undefined) return known;
  const architecture = name ?? `of model_type "${modelType ?? ''}"`;
  throw new MoeError(
    'MOE_UNSUPPORTED_ARCHITECTURE',
    `The architecture ${architecture} cannot run yet. Supported are ${supportedArchitectures.join(' and ')}.`,
    { file: fields.file, field: 'architectures', architecture, supported: supportedArchitectures },
  );
}

/** Where the families differ. Defaults are those of the configuration classes in transformers. */
interface Family {
  readonly modelType: string;
  readonly hasQkNorm: boolean;
  readonly defaultRopeTheta: number;
  readonly defaultRmsNormEps: number;
  readonly slidingWindow: (fields: ConfigReader) => number;
  readonly denseLayers: (fields: ConfigReader, numLayers: number) => number[];
}

const families: Readonly<Record<Architecture, Family>> = {
  Qwen3MoeForCausalLM: {
    modelType: 'qwen3_moe',
    hasQkNorm: true,
    defaultRopeTheta: 10_000,
    defaultRmsNormEps: 1e-6,
    slidingWindow: (fields) => (fields.boolean('use_sliding_window', false) ? fields.integer('sliding_window', sane.positions, 0) : 0),
    denseLayers: (fields, numLayers) => {
      const sparseStep = fields.integer('decoder_sparse_step', sane.layers, 1);
      const mlpOnly = fields.integers('mlp_only_layers');
      return [...Array(numLayers).keys()].filter((layer) => mlpOnly.includes(layer) || (layer + 1) % sparseStep !== 0);
    },
  },
  MixtralForCausalLM: {
    modelType: 'mixtral',
    hasQkNorm: false,
    defaultRopeTheta: 1_000_000,
    defaultRmsNormEps: 1e-5,
    slidingWindow: (fields) => fields.integer('sliding_window', sane.positions, 0),
    denseLayers: () => [],
  },
};

function parseRope(fields: ConfigReader, architecture: Architecture, maxPositions: number, defaultTheta: number): RopeConfig {
  const parameters = fields.ropeParameters();
  const partial =
    parameters?.has('partial_rotary_factor') === true
      ? parameters.number('partial_rotary_factor')
      : fields.number('partial_rotary_factor', 1);
  if (partial !== 1) throw unsupported(architecture, 'partial_rotary_factor', partial, 'a rotary embedding on a part of each head');
  const scaling: RopeScaling = parameters === undefined ? { type: 'default' } : parseScaling(parameters, architecture, maxPositions);
  const theta = fields.ropeTheta(defaultTheta);
  if (theta <= 0) throw fields.error('rope_theta', 'a positive number', theta);
  return { theta, scaling };
}

function parseScaling(fields: ConfigReader, architecture: Architecture, maxPositions: number): RopeScaling {
  // `type` in files from before transformers 4.45.
  const type = fields.string('rope_type', fields.string('type', 'default'));
  const originalMaxPositions = fields.integer('original_max_position_embeddings', sane.positions, maxPositions);
  switch (type) {
    case 'default':
      return { type };
    case 'linear':
      return { type, factor: fields.number('factor') };
    case 'llama3':
      return {
        type,
        factor: fields.number('factor'),
        lowFreqFactor: fields.number('low_freq_factor'),
        highFreqFactor: fields.number('high_freq_factor'),
        originalMaxPositions,
      };
    case 'yarn': {
      const factor = fields.number('factor', maxPositions / originalMaxPositions);
      return {
        type,
        factor,
        originalMaxPositions,
        betaFast: fields.number('beta_fast', 32),
        betaSlow: fields.number('beta_slow', 1),
        truncate: fields.boolean('truncate', true),
        attentionFactor: optionalNumber(fields, 'attention_factor') ?? yarnAttentionFactor(fields, factor),
      };
    }
    default:
      throw unsupported(architecture, 'rope_type', type, `the rotary embedding "${type}" (default, linear, llama3 and yarn are known)`);
  }
}

/** Peng et al. 2023, equation 22; with `mscale` and `mscale_all_dim` as DeepSeek's models extend it. */
function yarnAttentionFactor(fields: ConfigReader, factor: number): number {
  const magnitude = (mscale: number): number => (factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1);
  const mscale = fields.number('mscale', 0);
  const mscaleAllDim = fields.number('mscale_all_dim', 0);
  return mscale !== 0 && mscaleAllDim !== 0 ? magnitude(mscale) / magnitude(mscaleAllDim) : magnitude(1);
}

function maxContextLengthOf(scaling: RopeScaling, maxPositions: number): number {
  if (scaling.type === 'linear') return Math.floor(maxPositions * scaling.factor);
  // Configurations differ in whether max_position_embeddings already counts the stretch.
  if (scaling.type === 'yarn') return Math.max(maxPositions, Math.floor(scaling.originalMaxPositions * scaling.factor));
  return maxPositions;
}

const tokenId = { min: 0, max: sane.vocabulary.max };

/** One id or a list of them, each with a logit of its own: min_tokens masks it, and a device refuses a whole step for one that it cannot find. */
function endTokenIds(fields: ConfigReader, vocabSize: number): readonly number[] | undefined {
  const field = 'eos_token_id';
  if (!fields.has(field)) return undefined;
  const ids = Array.isArray(fields.raw(field)) ? fields.integers(field) : [fields.integer(field, tokenId)];
  const missing = ids.find((id) => id >= vocabSize);
  if (missing !== undefined) throw fields.error(field, `token ids below vocab_size (${String(vocabSize)})`, missing);
  return ids;
}

function optionalNumber(fields: ConfigReader, field: string): number | undefined {
  return fields.has(field) ? fields.number(field) : undefined;
}

function unsupported(architecture: Architecture, field: string, value: unknown, what: string): MoeError {
  return new MoeError(
    'MOE_UNSUPPORTED_ARCHITECTURE',
    `This ${architecture} model has ${what}, which is not supported yet: "${field}" in config.json is ${JSON.stringify(value)}.`,
    { architecture, field, value },
  );
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
