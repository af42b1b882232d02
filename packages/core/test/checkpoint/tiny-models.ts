import { join } from 'node:path';
import { Checkpoint } from '../../src/checkpoint/checkpoint.js';
import { float32ToBf16 } from '../../src/quant/bf16.js';
import { encodeFp8BlockWeights, encodeFp8ChannelWeights, encodeFp8TensorWeights } from '../../src/quant/fp8.js';
import { encodeMxfp4Weights } from '../../src/quant/mxfp4.js';
import { encodeNvfp4Weights } from '../../src/quant/nvfp4.js';
import { gaussian } from '../quant/seeded.js';
import type { TensorToWrite } from './checkpoint-writer.js';
import { withFolder, writeConfig, writeSafetensors } from './checkpoint-writer.js';

export type Tensors = Record<string, TensorToWrite>;

/** How a test stores a module: a scheme, and the exporter whose names it uses. */
export type Storage = 'bf16' | 'nvfp4' | 'ct-nvfp4' | 'fp8' | 'fp8-channel' | 'fp8-block' | 'mxfp4';

function f32(...values: number[]): TensorToWrite {
  return { dtype: 'F32', shape: [], bytes: new Uint8Array(Float32Array.from(values).buffer) };
}

export function floats(shape: readonly number[], values: Float32Array): TensorToWrite {
  return { dtype: 'F32', shape, bytes: new Uint8Array(values.buffer) };
}

export function bf16(shape: readonly number[], seed = 1): TensorToWrite {
  const values = gaussian(
    shape.reduce((product, size) => product * size, 1),
    seed,
  );
  return { dtype: 'BF16', shape, bytes: new Uint8Array(float32ToBf16(values).buffer) };
}

/** Tensors of one module with random weights. */
export function moduleTensors(module: string, storage: Storage, rows: number, columns: number, seed = 1): Tensors {
  const values = gaussian(rows * columns, seed);
  const weight = (dtype: string, bytes: Uint8Array, width = columns): TensorToWrite => ({ dtype, shape: [rows, width], bytes });
  switch (storage) {
    case 'bf16':
      return { [`${module}.weight`]: bf16([rows, columns], seed) };
    case 'nvfp4': {
      const { codes, blockScales, globalScale } = encodeNvfp4Weights(values, rows, columns, { scheme: 'nvfp4.w4a16' });
      return {
        [`${module}.weight`]: weight('U8', codes, columns / 2),
        [`${module}.weight_scale`]: weight('F8_E4M3', blockScales, columns / 16),
        [`${module}.weight_scale_2`]: f32(globalScale),
        [`${module}.input_scale`]: f32(0.25),
      };
    }
    case 'ct-nvfp4': {
      const { codes, blockScales, globalScale } = encodeNvfp4Weights(values, rows, columns, {
        scheme: 'nvfp4.w4a16',
        globalScaleIs: 'divisor',
      });
      return {
        [`${module}.weight_packed`]: weight('U8', codes, columns / 2),
        [`${module}.weight_scale`]: weight('F8_E4M3', blockScales, columns / 16),
        [`${module}.weight_global_scale`]: { ...f32(globalScale), shape: [1] },
        [`${module}.input_global_scale`]: { ...f32(3), shape: [1] },
      };
    }
    case 'fp8': {
      const { codes, scale } = encodeFp8TensorWeights(values, rows, columns, { scheme: 'fp8.tensor.static' });
      return {
        [`${module}.weight`]: weight('F8_E4M3', codes),
        [`${module}.weight_scale`]: f32(scale),
        [`${module}.input_scale`]: f32(0.5),
      };
    }
    case 'fp8-channel': {
      const { codes, rowScales } = encodeFp8ChannelWeights(values, rows, columns);
      return { [`${module}.weight`]: weight('F8_E4M3', codes), [`${module}.weight_scale`]: floats([rows, 1], rowScales) };
    }
    case 'fp8-block': {
      const { codes, blockScales } = encodeFp8BlockWeights(values, rows, columns);
      const shape = [Math.ceil(rows / 128), Math.ceil(columns / 128)];
      return { [`${module}.weight`]: weight('F8_E4M3', codes), [`${module}.weight_scale_inv`]: floats(shape, blockScales) };
    }
    case 'mxfp4': {
      const { codes, blockScales } = encodeMxfp4Weights(values, rows, columns);
      return {
        [`${module}.weight_packed`]: weight('U8', codes, columns / 2),
        [`${module}.weight_scale`]: weight('U8', blockScales, columns / 32),
      };
    }
  }
}

/** Takes tensors out. */
export function removeTensors(tensors: Tensors, isUnwanted: (name: string) => boolean): void {
  for (const name of Object.keys(tensors)) if (isUnwanted(name)) Reflect.deleteProperty(tensors, name);
}

export const tinySizes = { hidden: 64, intermediate: 32, experts: 2, headDim: 32, vocabulary: 16 } as const;

/** A Qwen3-MoE of one layer, two experts; every module stored as `storageOf` says. */
export function tinyQwen3Moe(storageOf: (module: string) => Storage = () => 'bf16'): { config: Record<string, unknown>; tensors: Tensors } {
  const { hidden, intermediate, experts, headDim, vocabulary } = tinySizes;
  const config = {
    architectures: ['Qwen3MoeForCausalLM'],
    model_type: 'qwen3_moe',
    hidden_size: hidden,
    num_hidden_layers: 1,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: headDim,
    vocab_size: vocabulary,
    num_experts: experts,
    num_experts_per_tok: 1,
    moe_intermediate_size: intermediate,
    norm_topk_prob: true,
    hidden_act: 'silu',
    tie_word_embeddings: false,
  };
  const tensors: Tensors = {
    'model.embed_tokens.weight': bf16([vocabulary, hidden]),
    'model.layers.0.mlp.gate.weight': bf16([experts, hidden]),
  };
  const add = (module: string, rows: number, columns: number): void => {
    Object.assign(tensors, moduleTensors(module, storageOf(module), rows, columns, Object.keys(tensors).length));
  };
  add('lm_head', vocabulary, hidden);
  add('model.layers.0.self_attn.q_proj', 4 * headDim, hidden);
  add('model.layers.0.self_attn.k_proj', 2 * headDim, hidden);
  add('model.layers.0.self_attn.v_proj', 2 * headDim, hidden);
  add('model.layers.0.self_attn.o_proj', hidden, 4 * headDim);
  for (let expert = 0; expert < experts; expert++) {
    add(`model.layers.0.mlp.experts.${String(expert)}.gate_proj`, intermediate, hidden);
    add(`model.layers.0.mlp.experts.${String(expert)}.up_proj`, intermediate, hidden);
    add(`model.layers.0.mlp.experts.${String(expert)}.down_proj`, hidden, intermediate);
  }
  return { config, tensors };
}

/** Writes a checkpoint, opens it, and cleans up afterwards. */
export async function withCheckpoint<T>(
  { config, tensors }: { readonly config: Readonly<Record<string, unknown>>; readonly tensors: Tensors },
  use: (checkpoint: Checkpoint) => Promise<T> | T,
): Promise<T> {
  return withFolder(async (folder) => {
    await writeConfig(folder, config);
    await writeSafetensors(join(folder, 'model.safetensors'), tensors);
    const checkpoint = await Checkpoint.open(folder);
    try {
      return await use(checkpoint);
    } finally {
      await checkpoint.close();
    }
  });
}
