import { DecoderLayer } from '../layers/decoder-layer.js';
import { Moe } from '../layers/moe.js';
import { DecoderModel } from './decoder-model.js';
import type { LoadModel } from './model.js';

/** Mixtral of experts (Jiang et al. 2024): every layer has experts, attention may have a sliding window. */
export const loadMixtral: LoadModel = (weights, config, maxPositions) =>
  DecoderModel.load(weights, config, maxPositions, (layer, rope) => {
    const module = `model.layers.${String(layer)}`;
    const moe = `${module}.block_sparse_moe`;
    return DecoderLayer.load(weights, module, config, rope, () => Moe.load(weights, { router: `${moe}.gate`, experts: `${moe}.experts` }));
  });
