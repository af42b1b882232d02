import type { Architecture } from '../model-config.js';
import { loadMixtral } from './mixtral.js';
import type { LoadModel } from './model.js';
import { loadQwen3Moe } from './qwen3-moe.js';

/** How each architecture is loaded. A new family is one line here, one in model-config.ts and one file beside this. */
export const modelLoaders: Readonly<Record<Architecture, LoadModel>> = {
  Qwen3MoeForCausalLM: loadQwen3Moe,
  MixtralForCausalLM: loadMixtral,
};
