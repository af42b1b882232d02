import type { DType } from '../dtype.js';
import { float32ToBf16 } from '../quant/bf16.js';
import type { Random } from '../random.js';
import { fillBf16, fillE4m3Codes, fillNvfp4BlockScales, nvfp4GlobalScale, fp8Scale } from './random-weights.js';

/** Schemes that a modelopt export of Qwen3-MoE can have. */
export type SyntheticScheme = 'nvfp4.w4a4' | 'nvfp4.w4a16' | 'fp8.tensor.static' | 'bf16';

/** A Qwen3-MoE model with random weights. */
export interface SyntheticModel {
  readonly hiddenSize: number;
  readonly numLayers: number;
  readonly numExperts: number;
  readonly topK: number;
  readonly moeIntermediateSize: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly vocabSize: number;
  /** Of the routed experts, for all layers or by layer. */
  readonly experts: SyntheticScheme | ((layerIndex: number) => SyntheticScheme);
  /** Of q, k, v and o; default bf16. */
  readonly attention?: SyntheticScheme;
  /** lm_head repeats the embedding; default false. */
  readonly tieWordEmbeddings?: boolean;
  /** Default 4096. */
  readonly maxPositions?: number;
  /** Writes k_scale and v_scale and asks for an FP8 KV cache; default false. */
  readonly fp8KvCache?: boolean;
  /** Default 1. */
  readonly seed?: number;
  /** A shard ends before it would pass this; default 2 GiB. */
  readonly maxShardBytes?: number;
  /** Folder to copy tokenizer.json and tokenizer_config.json from. */
  readonly tokenizerFrom?: string;
}

/** One tensor of the checkpoint, not made yet. */
export interface ModuleTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly byteLength: number;
  /** Makes the next bytes of the tensor. `target` is aligned to four bytes and holds whole elements. */
  readonly fill: (target: Uint8Array, random: Random) => void;
}

/** Every quantized or quantizable module of a layer with its scheme, in file order; what the quantization config lists. */
export interface SyntheticLinear {
  readonly name: string;
  readonly rows: number;
  readonly columns: number;
  readonly scheme: SyntheticScheme;
}

/** Scheme of a layer's experts. */
export function expertScheme(model: SyntheticModel, layerIndex: number): SyntheticScheme {
  return typeof model.experts === 'function' ? model.experts(layerIndex) : model.experts;
}

/** Attention projections and expert projections of one layer. */
export function layerLinears(model: SyntheticModel, layerIndex: number): SyntheticLinear[] {
  const { hiddenSize, moeIntermediateSize, numHeads, numKvHeads, headDim, attention = 'bf16' } = model;
  const layer = `model.layers.${String(layerIndex)}`;
  const queries = numHeads * headDim;
  const keys = numKvHeads * headDim;
  const projections = [
    ['q_proj', queries, hiddenSize],
    ['k_proj', keys, hiddenSize],
    ['v_proj', keys, hiddenSize],
    ['o_proj', hiddenSize, queries],
  ] as const;
  const scheme = expertScheme(model, layerIndex);
  const expertProjections = [
    ['gate_proj', moeIntermediateSize, hiddenSize],
    ['up_proj', moeIntermediateSize, hiddenSize],
    ['down_proj', hiddenSize, moeIntermediateSize],
  ] as const;
  return [
    ...projections.map(([name, rows, columns]) => ({ name: `${layer}.self_attn.${name}`, rows, columns, scheme: attention })),
    ...Array.from({ length: model.numExperts }, (_, expert) =>
      expertProjections.map(([name, rows, columns]) => ({ name: `${layer}.mlp.experts.${String(expert)}.${name}`, rows, columns, scheme })),
    ).flat(),
  ];
}

/** Every tensor in file order: embedding, layers, head. */
export function checkpointModules(model: SyntheticModel): ModuleTensor[] {
  const { hiddenSize, headDim, numExperts, numLayers, vocabSize, tieWordEmbeddings = false, fp8KvCache = false } = model;
  // A tied embedding is also the head, whose logits should have a standard deviation of about 2.
  const headRms = 2 / Math.sqrt(hiddenSize);
  const tensors = [bf16Matrix('model.embed_tokens.weight', vocabSize, hiddenSize, tieWordEmbeddings ? headRms : 1)];
  for (let i = 0; i < numLayers; i++) {
    const layer = `model.layers.${String(i)}`;
    tensors.push(
      ones(`${layer}.input_layernorm.weight`, hiddenSize),
      ones(`${layer}.post_attention_layernorm.weight`, hiddenSize),
      ones(`${layer}.self_attn.q_norm.weight`, headDim),
      ones(`${layer}.self_attn.k_norm.weight`, headDim),
      // Router logits with a standard deviation of about 1: experts are chosen evenly, and no weight vanishes.
      bf16Matrix(`${layer}.mlp.gate.weight`, numExperts, hiddenSize, 1 / Math.sqrt(hiddenSize)),
      ...layerLinears(model, i).flatMap(linearTensors),
    );
    if (fp8KvCache)
      tensors.push(
        scalar(`${layer}.self_attn.k_proj.k_scale`, () => 4 / 448),
        scalar(`${layer}.self_attn.v_proj.v_scale`, () => 4 / 448),
      );
  }
  tensors.push(ones('model.norm.weight', hiddenSize));
  if (!tieWordEmbeddings) tensors.push(bf16Matrix('lm_head.weight', vocabSize, hiddenSize, headRms));
  return tensors;
}

/** Weight and scales of one module, as modelopt names them. */
function linearTensors({ name, rows, columns, scheme }: SyntheticLinear): ModuleTensor[] {
  switch (scheme) {
    case 'bf16':
      return [bf16Matrix(`${name}.weight`, rows, columns, 1 / Math.sqrt(columns))];
    case 'fp8.tensor.static':
      return [
        bytes(`${name}.weight`, 'f8e4m3', [rows, columns], fillE4m3Codes),
        scalar(`${name}.weight_scale`, () => fp8Scale(columns)),
        scalar(`${name}.input_scale`, () => inputAmax(name) / 448),
      ];
    case 'nvfp4.w4a4':
    case 'nvfp4.w4a16': {
      const tensors = [
        bytes(`${name}.weight`, 'u8', [rows, columns / 2], (target, random) => {
          random.fillBytes(target);
        }),
        bytes(`${name}.weight_scale`, 'f8e4m3', [rows, columns / 16], fillNvfp4BlockScales),
        scalar(`${name}.weight_scale_2`, () => nvfp4GlobalScale(columns)),
      ];
      return scheme === 'nvfp4.w4a4' ? [...tensors, scalar(`${name}.input_scale`, () => inputAmax(name) / (6 * 448))] : tensors;
    }
  }
}

/** Largest input that a calibration would have met: normalised hidden states reach six, activations less. */
function inputAmax(name: string): number {
  return name.endsWith('down_proj') ? 3 : 6;
}

function bytes(name: string, dtype: DType, shape: readonly number[], fill: ModuleTensor['fill']): ModuleTensor {
  return { name, dtype, shape, byteLength: shape.reduce((product, size) => product * size, 1), fill };
}

function scalar(name: string, value: () => number): ModuleTensor {
  return {
    name,
    dtype: 'f32',
    shape: [],
    byteLength: 4,
    fill: (target) => {
      new DataView(target.buffer, target.byteOffset).setFloat32(0, value(), true);
    },
  };
}

function ones(name: string, length: number): ModuleTensor {
  const one = float32ToBf16(Float32Array.of(1))[0] ?? 0;
  return {
    name,
    dtype: 'bf16',
    shape: [length],
    byteLength: 2 * length,
    fill: (target) => {
      new Uint16Array(target.buffer, target.byteOffset, target.byteLength >> 1).fill(one);
    },
  };
}

function bf16Matrix(name: string, rows: number, columns: number, rms: number): ModuleTensor {
  return {
    name,
    dtype: 'bf16',
    shape: [rows, columns],
    byteLength: 2 * rows * columns,
    fill: (target, random) => {
      fillBf16(target, rms, random);
    },
  };
}
