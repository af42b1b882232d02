import type { Checkpoint } from './checkpoint.js';
import { checkTensor } from './module-tensors.js';
import { readScalar } from './read-matrix.js';

/** Where exporters put the scales of keys and values, after the name of the layer. */
const names = {
  k: ['self_attn.k_proj.k_scale', 'self_attn.k_scale', 'self_attn.attn.k_scale', 'attn.k_scale', 'self_attn.qkv_proj.k_scale'],
  v: ['self_attn.v_proj.v_scale', 'self_attn.v_scale', 'self_attn.attn.v_scale', 'attn.v_scale', 'self_attn.qkv_proj.v_scale'],
  /** Old files have one for both. */
  both: ['self_attn.kv_scale', 'self_attn.attn.kv_scale', 'attn.kv_scale'],
} as const;

/**
 * The calibrated scales of a layer's FP8 keys and values: what is stored is e4m3(x/scale).
 *
 * @param layerPrefix - the layer's name without a dot at the end, `model.layers.3`.
 * @returns undefined when the checkpoint has none; 1 for one of the two that is missing.
 * @throws {MoeError} MOE_CHECKPOINT_TENSOR when a scale is not one positive, finite F32, BF16 or F16 value.
 */
export async function readKvScales(
  checkpoint: Checkpoint,
  layerPrefix: string,
): Promise<{ readonly k: number; readonly v: number } | undefined> {
  const k = await readFirst(checkpoint, layerPrefix, [...names.k, ...names.both]);
  const v = await readFirst(checkpoint, layerPrefix, [...names.v, ...names.both]);
  return k === undefined && v === undefined ? undefined : { k: k ?? 1, v: v ?? 1 };
}

async function readFirst(checkpoint: Checkpoint, layerPrefix: string, suffixes: readonly string[]): Promise<number | undefined> {
  for (const suffix of suffixes) {
    const info = checkpoint.find(`${layerPrefix}.${suffix}`);
    if (info === undefined) continue;
    checkTensor(info, ['f32', 'bf16', 'f16'], [[], [1]], 'as a scale of the KV cache');
    return readScalar(info, await checkpoint.read(info.name));
  }
  return undefined;
}
