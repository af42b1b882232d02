import { DecoderLayer } from '../layers/decoder-layer.js';
import { DenseMlp } from '../layers/dense-mlp.js';
import { Moe } from '../layers/moe.js';
import { DecoderModel } from './decoder-model.js';
import type { LoadModel } from './model.js';

/** Qwen3-MoE (Qwen3 technical report, 2025): queries and keys normalized per head, some layers possibly dense. */
export const loadQwen3Moe: LoadModel = (weights, config, maxPositions) =>
  DecoderModel.load(weights, config, maxPositions, (layer, rope) => {
    const module = `model.layers.${String(layer)}`;
    return DecoderLayer.load(weights, module, config, rope, () =>
      config.denseLayers.includes(layer)
        ? DenseMlp.load(weights, `${module}.mlp`)
        : Moe.load(weights, { router: `${module}.mlp.gate`, experts: `${module}.mlp.experts` }),
    );
  });
