import { existsSync } from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { writeCheckpoint } from '@moe-server/core/conformance';
import type { SyntheticModel } from '@moe-server/core/conformance';
import { pocketDictionary } from '@moe-server/test-kit';

export const shapeNames = ['pocket', 'S', 'M'] as const;
export type ShapeName = (typeof shapeNames)[number];

/** NVFP4 experts and FP8 attention, as mixed modelopt exports have them; the head is bf16. The tokenizer is there so that the same folder converts to GGUF. */
const recipe = { experts: 'nvfp4.w4a4', attention: 'fp8.tensor.static', maxPositions: 40_960, tokenizerFrom: pocketDictionary } as const;

const synthetic: Readonly<Record<Exclude<ShapeName, 'pocket'>, SyntheticModel>> = {
  /** 1.04 G parameters, 210 M active. */
  S: {
    ...recipe,
    hiddenSize: 1024,
    numLayers: 12,
    numExperts: 64,
    topK: 8,
    moeIntermediateSize: 384,
    numHeads: 16,
    numKvHeads: 4,
    headDim: 128,
    vocabSize: 32_768,
  },
  /** The layer shape of Qwen3-30B-A3B, a quarter of its layers and vocabulary: 7.6 G parameters, 760 M active. */
  M: {
    ...recipe,
    hiddenSize: 2048,
    numLayers: 12,
    numExperts: 128,
    topK: 8,
    moeIntermediateSize: 768,
    numHeads: 32,
    numKvHeads: 4,
    headDim: 128,
    vocabSize: 37_984,
  },
};

/**
 * The checkpoint folder of a shape; synthetic ones are written at the first call and kept.
 *
 * @param numLayers - fewer layers than the shape has.
 * @param cache - where synthetic checkpoints are kept; default: a folder in the system's temporary one.
 */
export async function checkpointOf(shape: ShapeName, numLayers: number | undefined, cache = join(tmpdir(), 'moe-bench')): Promise<string> {
  if (shape === 'pocket') return pocketDictionary;
  const model = { ...synthetic[shape], ...(numLayers === undefined ? {} : { numLayers }) };
  const folder = join(cache, `${shape}-${String(model.numLayers)}-nvfp4`);
  if (existsSync(folder)) return folder;
  // Renamed when whole, so that an interrupted run leaves nothing that looks like a checkpoint.
  const unfinished = `${folder}.unfinished`;
  await rm(unfinished, { recursive: true, force: true });
  await writeCheckpoint(unfinished, model);
  await rename(unfinished, folder);
  return folder;
}
