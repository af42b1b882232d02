import type { DType } from '../dtype.js';
import type { SchemeKey } from '../quant/quant-scheme.js';
import type { Checkpoint } from './checkpoint.js';
import { checkTensor, tensorError } from './module-tensors.js';
import type { TensorInfo } from './safetensors.js';

/** How the experts of one layer lie in the file. */
export type ExpertStorage =
  /** `BASE.7.gate_proj.weight` and its scales. */
  | { readonly type: 'per-expert'; readonly projections: ProjectionNames }
  /** `BASE.gate_up_proj` [experts, 2·intermediate, hidden], gate rows first; `BASE.down_proj` [experts, hidden, intermediate]. */
  | { readonly type: 'fused' }
  /** gpt-oss in MXFP4: `BASE.gate_up_proj_blocks`, `_scales`, `_bias`; gate and up rows alternate. */
  | { readonly type: 'gpt-oss-blocks' }
  /** gpt-oss unquantized: `BASE.gate_up_proj` [experts, hidden, 2·intermediate], transposed, gate and up columns alternate. */
  | { readonly type: 'gpt-oss-plain' };

export interface ProjectionNames {
  readonly gate: string;
  readonly up: string;
  readonly down: string;
}

export interface ExpertSizes {
  readonly numExperts: number;
  readonly hiddenSize: number;
  readonly moeIntermediateSize: number;
}

const usualNames: ProjectionNames = { gate: 'gate_proj', up: 'up_proj', down: 'down_proj' };
const mixtralNames: ProjectionNames = { gate: 'w1', up: 'w3', down: 'w2' };

/**
 * Tells the form from the names that are there; per expert when nothing is, so that what is missing gets named.
 *
 * @param base - name of the module that holds the experts.
 * @param isInterleaved - gpt-oss: gate and up alternate, and plain matrices are transposed.
 */
export function findExpertStorage(checkpoint: Checkpoint, base: string, isInterleaved: boolean): ExpertStorage {
  if (isInterleaved) return { type: checkpoint.has(`${base}.gate_up_proj_blocks`) ? 'gpt-oss-blocks' : 'gpt-oss-plain' };
  if (checkpoint.has(`${base}.gate_up_proj`)) return { type: 'fused' };
  const isMixtral =
    ['weight', 'weight_packed'].some((suffix) => checkpoint.has(`${base}.0.w1.${suffix}`)) || base.includes('block_sparse_moe');
  return { type: 'per-expert', projections: isMixtral ? mixtralNames : usualNames };
}

/** Tensors of all experts in one. */
export interface StackedExperts {
  readonly scheme: SchemeKey;
  readonly gateUp: TensorInfo;
  readonly down: TensorInfo;
  readonly gateUpScales?: TensorInfo;
  readonly downScales?: TensorInfo;
  readonly gateUpBias?: TensorInfo;
  readonly downBias?: TensorInfo;
}

const plainTypes: readonly DType[] = ['bf16', 'f16'];
const biasTypes: readonly DType[] = ['bf16', 'f16', 'f32'];

/**
 * Finds and checks the tensors of experts that are stored together.
 *
 * @throws {MoeError} MOE_CHECKPOINT_TENSOR
 */
export function locateStackedExperts(
  checkpoint: Checkpoint,
  base: string,
  storage: Exclude<ExpertStorage, { readonly type: 'per-expert' }>,
  { numExperts: e, hiddenSize: h, moeIntermediateSize: i }: ExpertSizes,
): StackedExperts {
  const require = (suffix: string, dtypes: readonly DType[], shape: readonly number[]): TensorInfo => {
    const info = checkpoint.find(`${base}.${suffix}`);
    if (info === undefined) throw tensorError(`${base}.${suffix}`, 'it is missing', { expected: shape, actual: null });
    return checkTensor(info, dtypes, [shape], 'for the sizes in config.json');
  };
  const isTransposed = storage.type === 'gpt-oss-plain';
  if (storage.type !== 'gpt-oss-blocks') {
    const gateUp = require('gate_up_proj', plainTypes, isTransposed ? [e, h, 2 * i] : [e, 2 * i, h]);
    const down = require('down_proj', [gateUp.dtype], isTransposed ? [e, i, h] : [e, h, i]);
    const scheme = gateUp.dtype === 'f16' ? 'f16' : 'bf16';
    return isTransposed ? { scheme, gateUp, down, ...biases() } : { scheme, gateUp, down };
  }
  if (h % 32 !== 0 || i % 32 !== 0) {
    throw tensorError(`${base}.gate_up_proj_blocks`, `MXFP4 has groups of 32, and the sizes are ${String(h)} and ${String(i)}`, {
      expected: 32,
    });
  }
  return {
    scheme: 'mxfp4.w4a16',
    gateUp: require('gate_up_proj_blocks', ['u8'], [e, 2 * i, h / 32, 16]),
    gateUpScales: require('gate_up_proj_scales', ['u8', 'f8e8m0'], [e, 2 * i, h / 32]),
    down: require('down_proj_blocks', ['u8'], [e, h, i / 32, 16]),
    downScales: require('down_proj_scales', ['u8', 'f8e8m0'], [e, h, i / 32]),
    ...biases(),
  };

  function biases(): { readonly gateUpBias: TensorInfo; readonly downBias: TensorInfo } {
    return { gateUpBias: require('gate_up_proj_bias', biasTypes, [e, 2 * i]), downBias: require('down_proj_bias', biasTypes, [e, h]) };
  }
}

/** Module that holds a group's experts: its name without the scheme that tells groups of one layer apart. */
export function expertsModule(groupName: string): string {
  const hash = groupName.indexOf('#');
  return hash < 0 ? groupName : groupName.slice(0, hash);
}
