import { MoeError } from '@moe-server/core';
import { ConfigFields } from './config-fields.js';

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
  /** Inner width of those. */
  readonly intermediateSize: number;
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

/** As {@link readModelConfig}, from parsed JSON; `generationConfig` is undefined where there is no such file. */
export function parseModelConfig(config: Readonly<Record<string, unknown>>, generationConfig: unknown): ModelConfig {
  const architecture = architectureOf(config);
  const fields = new ConfigFields('config.json', config);
  const generation = new ConfigFields('generation_config.json', generationConfig);
  if (fields.boolean('attention_bias', false)) {
    throw unsupported(architecture, 'attention_bias', true, 'attention projections with a bias');
  }
  const activation = fields.string('hidden_act', 'silu');
  if (activation !== 'silu') throw unsupported(architecture, 'hidden_act', activation, 'an activation other than "silu"');
  const hiddenSize = fields.count('hidden_size');
  const numHeads = fields.count('num_attention_heads');
  const numKvHeads = fields.count('num_key_value_heads');
  const numLayers = fields.count('num_hidden_layers');
  const headDim = fields.optionalCount('head_dim') ?? hiddenSize / numHeads;
  if (numHeads % numKvHeads !== 0) throw fields.invalid('num_key_value_heads', `a divisor of num_attention_heads (${String(numHeads)})`);
  if (!Number.isInteger(headDim) || headDim % 2 !== 0) throw fields.invalid('head_dim', 'an even number');
  const maxPositions = fields.count('max_position_embeddings');
  const family = families[architecture];
  const rope = parseRope(fields, architecture, maxPositions, family.defaultRopeTheta);
  return {
    architecture,
    vocabSize: fields.count('vocab_size'),
    hiddenSize,
    numLayers,
    numHeads,
    numKvHeads,
    headDim,
    rmsNormEps: fields.number('rms_norm_eps', family.defaultRmsNormEps),
    hasQkNorm: family.hasQkNorm,
    rope,
    slidingWindow: family.slidingWindow(fields),
    maxContextLength: maxContextLengthOf(rope.scaling, maxPositions),
    denseLayers: family.denseLayers(fields, numLayers),
    intermediateSize: fields.count('intermediate_size'),
    bosTokenId: fields.optionalNumber('bos_token_id'),
    eosTokenIds: generation.wholeNumbers('eos_token_id') ?? fields.wholeNumbers('eos_token_id') ?? [],
    samplingDefaults: {
      temperature: generation.boolean('do_sample', true) ? generation.optionalNumber('temperature') : 0,
      topK: generation.optionalNumber('top_k'),
      topP: generation.optionalNumber('top_p'),
      minP: generation.optionalNumber('min_p'),
      repetitionPenalty: generation.optionalNumber('repetition_penalty'),
      maxTokens: generation.optionalNumber('max_new_tokens'),
    },
  };
}

function architectureOf(config: Readonly<Record<string, unknown>>): Architecture {
  const { architectures } = config;
  const architecture: unknown = Array.isArray(architectures) ? architectures[0] : undefined;
  if (typeof architecture !== 'string') {
    throw new MoeError(
      'MOE_CHECKPOINT_CONFIG',
      'config.json has no "architectures" with the name of the model class, so it is not known what to run.',
      {
        file: 'config.json',
        field: 'architectures',
      },
    );
  }
  const known = supportedArchitectures.find((name) => name === architecture);
  if (known !== undefined) return known;
  throw new MoeError(
    'MOE_UNSUPPORTED_ARCHITECTURE',
    `The architecture ${architecture} cannot run yet. Supported are ${supportedArchitectures.join(' and ')}.`,
    { architecture, supported: supportedArchitectures },
  );
}

/** Where the families differ. Defaults are those of the configuration classes in transformers. */
interface Family {
  readonly hasQkNorm: boolean;
  readonly defaultRopeTheta: number;
  readonly defaultRmsNormEps: number;
  readonly slidingWindow: (fields: ConfigFields) => number;
  readonly denseLayers: (fields: ConfigFields, numLayers: number) => number[];
}

const families: Readonly<Record<Architecture, Family>> = {
  Qwen3MoeForCausalLM: {
    hasQkNorm: true,
    defaultRopeTheta: 10_000,
    defaultRmsNormEps: 1e-6,
    slidingWindow: (fields) => (fields.boolean('use_sliding_window', false) ? (fields.optionalNumber('sliding_window') ?? 0) : 0),
    denseLayers: (fields, numLayers) => {
      const sparseStep = fields.optionalCount('decoder_sparse_step') ?? 1;
      const mlpOnly = fields.wholeNumbers('mlp_only_layers') ?? [];
      return [...Array(numLayers).keys()].filter((layer) => mlpOnly.includes(layer) || (layer + 1) % sparseStep !== 0);
    },
  },
  MixtralForCausalLM: {
    hasQkNorm: false,
    defaultRopeTheta: 1_000_000,
    defaultRmsNormEps: 1e-5,
    slidingWindow: (fields) => fields.optionalNumber('sliding_window') ?? 0,
    denseLayers: () => [],
  },
};

/** Old: `rope_theta` and `rope_scaling` {rope_type or type}. New: both in `rope_parameters`. */
function parseRope(fields: ConfigFields, architecture: Architecture, maxPositions: number, defaultTheta: number): RopeConfig {
  const parameters = fields.optionalRecord('rope_parameters');
  const scalingFields = parameters ?? fields.optionalRecord('rope_scaling');
  const theta = parameters?.optionalNumber('rope_theta') ?? fields.number('rope_theta', defaultTheta);
  const partial = parameters?.optionalNumber('partial_rotary_factor') ?? fields.number('partial_rotary_factor', 1);
  if (partial !== 1) throw unsupported(architecture, 'partial_rotary_factor', partial, 'a rotary embedding on a part of each head');
  return { theta, scaling: scalingFields === undefined ? { type: 'default' } : parseScaling(scalingFields, architecture, maxPositions) };
}

function parseScaling(fields: ConfigFields, architecture: Architecture, maxPositions: number): RopeScaling {
  const type = fields.string('rope_type', fields.string('type', 'default'));
  const originalMaxPositions = fields.optionalCount('original_max_position_embeddings') ?? maxPositions;
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
      const factor = fields.optionalNumber('factor') ?? maxPositions / originalMaxPositions;
      return {
        type,
        factor,
        originalMaxPositions,
        betaFast: fields.optionalNumber('beta_fast') ?? 32,
        betaSlow: fields.optionalNumber('beta_slow') ?? 1,
        truncate: fields.boolean('truncate', true),
        attentionFactor: fields.optionalNumber('attention_factor') ?? yarnAttentionFactor(fields, factor),
      };
    }
    default:
      throw unsupported(architecture, 'rope_type', type, `the rotary embedding "${type}" (default, linear, llama3 and yarn are known)`);
  }
}

/** Peng et al. 2023, equation 22; with `mscale` and `mscale_all_dim` as DeepSeek's models extend it. */
function yarnAttentionFactor(fields: ConfigFields, factor: number): number {
  const magnitude = (mscale: number): number => (factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1);
  const mscale = fields.optionalNumber('mscale');
  const mscaleAllDim = fields.optionalNumber('mscale_all_dim');
  return mscale && mscaleAllDim ? magnitude(mscale) / magnitude(mscaleAllDim) : magnitude(1);
}

function maxContextLengthOf(scaling: RopeScaling, maxPositions: number): number {
  if (scaling.type === 'linear') return Math.floor(maxPositions * scaling.factor);
  // Configurations differ in whether max_position_embeddings already counts the stretch.
  if (scaling.type === 'yarn') return Math.max(maxPositions, Math.floor(scaling.originalMaxPositions * scaling.factor));
  return maxPositions;
}

function unsupported(architecture: Architecture, field: string, value: unknown, what: string): MoeError {
  return new MoeError(
    'MOE_UNSUPPORTED_ARCHITECTURE',
    `This ${architecture} model has ${what}, which is not supported yet: "${field}" in config.json is ${JSON.stringify(value)}.`,
    { architecture, field, value },
  );
}
