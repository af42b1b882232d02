import type { ExpertMatrices, ExpertWeights } from '../backend.js';
import { MoeError } from '../errors.js';
import type { ExpertGroupSpec, ParallelPlacement } from '../layer-spec.js';
import { bf16ToFloat32 } from '../quant/bf16.js';
import { f16ToFloat32 } from '../quant/f16.js';
import type { SchemeKey, SchemeRegistry } from '../quant/quant-scheme.js';
import { SCHEME } from '../quant/quant-scheme.js';
import type { Checkpoint } from './checkpoint.js';
import type { ExpertStorage, StackedExperts } from './expert-storage.js';
import { expertsModule, findExpertStorage, locateStackedExperts } from './expert-storage.js';
import { checkFiniteWeights } from './finite-weights.js';
import { locateModule } from './module-tensors.js';
import { ReadBuffer } from './read-buffer.js';
import { checkE8m0Scales, readMatrices, uint16Of } from './read-matrix.js';
import type { TensorInfo } from './safetensors.js';

/**
 * Lazy access to the experts of a group, whichever way they lie in the files: one by one, fused, or as gpt-oss has them. Nothing is read
 * before `expert(slot)`, and that reads one expert; gate and up always come apart.
 *
 * @param group - made by describeModel for the same checkpoint.
 * @throws {MoeError} MOE_CHECKPOINT_TENSOR when tensors contradict the group, also later from `expert`; MOE_UNSUPPORTED_PARALLEL for a
 *   layer that is split over ranks.
 */
export function openExpertWeights(checkpoint: Checkpoint, group: ExpertGroupSpec): ExpertWeights {
  requireSingleRank(group.name, group.parallel);
  const base = expertsModule(group.name);
  const storage = findExpertStorage(checkpoint, base, group.activation.type === 'swiglu');
  const numExperts = group.experts.length;
  const expertAt = (slot: number): number => {
    const expert = group.experts[slot];
    if (expert === undefined) {
      throw new MoeError(
        'MOE_INTERNAL',
        `Slot ${String(slot)} of ${group.name} was asked for; the group has ${String(numExperts)} experts.`,
        { slot },
      );
    }
    return expert;
  };
  if (storage.type === 'per-expert') {
    return {
      numExperts,
      expert: async (slot, into) => readSeparate(checkpoint, group, `${base}.${String(expertAt(slot))}`, storage.projections, into),
    };
  }
  const stacked = locateStackedExperts(checkpoint, base, storage, group);
  return { numExperts, expert: async (slot, into) => readStacked(checkpoint, group, storage, stacked, expertAt(slot), into) };
}

/** @throws {MoeError} MOE_UNSUPPORTED_PARALLEL unless the layer is whole. */
export function requireSingleRank(name: string, { tpSize, epSize }: ParallelPlacement): void {
  if (tpSize === 1 && epSize === 1) return;
  throw new MoeError(
    'MOE_UNSUPPORTED_PARALLEL',
    `${name} is planned for tensor parallel size ${String(tpSize)} and expert parallel size ${String(epSize)}; weights are read for one rank only. Use 1 and 1 to serve it.`,
    { layer: name, tpSize, epSize },
  );
}

async function readSeparate(
  checkpoint: Checkpoint,
  { schemes, hiddenSize: h, moeIntermediateSize: i }: ExpertGroupSpec,
  module: string,
  names: { readonly gate: string; readonly up: string; readonly down: string },
  into: ReadBuffer | undefined,
): Promise<ExpertMatrices> {
  into?.clear();
  const located = [
    locateModule(checkpoint, `${module}.${names.gate}`, schemes.w13, i, h),
    locateModule(checkpoint, `${module}.${names.up}`, schemes.w13, i, h),
    locateModule(checkpoint, `${module}.${names.down}`, schemes.w2, h, i),
  ];
  const [gate, up, down] = await readMatrices(checkpoint, located, into);
  return { gate, up, down } as ExpertMatrices;
}

async function readStacked(
  checkpoint: Checkpoint,
  { hiddenSize: h, moeIntermediateSize: i }: ExpertGroupSpec,
  storage: ExpertStorage,
  stacked: StackedExperts,
  expert: number,
  into = new ReadBuffer(),
): Promise<ExpertMatrices> {
  into.clear();
  const bytesOf = async (info: TensorInfo): Promise<Uint8Array<ArrayBuffer>> => checkpoint.readRows(info.name, expert, 1, into);
  if (storage.type === 'gpt-oss-blocks') {
    const { gateUpScales, downScales } = stacked as Required<StackedExperts>;
    const [gateUp, gateUpScaleBytes, down, downScaleBytes] = await Promise.all([
      bytesOf(stacked.gateUp),
      bytesOf(gateUpScales),
      bytesOf(stacked.down),
      bytesOf(downScales),
    ]);
    checkE8m0Scales(gateUpScales, gateUpScaleBytes, expert * gateUpScaleBytes.length);
    checkE8m0Scales(downScales, downScaleBytes, expert * downScaleBytes.length);
    const mxfp4 = (rows: number, columns: number, codes: Uint8Array, blockScales: Uint8Array): SchemeRegistry['mxfp4.w4a16'] => ({
      [SCHEME]: 'mxfp4.w4a16',
      rows,
      columns,
      codes,
      blockScales,
    });
    return {
      gate: mxfp4(i, h, everySecondRow(gateUp, 0, i, into), everySecondRow(gateUpScaleBytes, 0, i, into)),
      up: mxfp4(i, h, everySecondRow(gateUp, 1, i, into), everySecondRow(gateUpScaleBytes, 1, i, into)),
      down: mxfp4(h, i, down, downScaleBytes),
      bias: await readBiases(stacked as Required<StackedExperts>, bytesOf),
    };
  }
  const [gateUpBytes, downBytes] = await Promise.all([bytesOf(stacked.gateUp), bytesOf(stacked.down)]);
  checkFiniteWeights(stacked.gateUp, gateUpBytes, expert * 2 * i * h);
  checkFiniteWeights(stacked.down, downBytes, expert * i * h);
  const gateUp = uint16Of(gateUpBytes);
  const down = uint16Of(downBytes);
  const plain = (rows: number, columns: number, values: Uint16Array): SchemeRegistry[SchemeKey] =>
    ({ [SCHEME]: stacked.scheme, rows, columns, values }) as SchemeRegistry['bf16' | 'f16'];
  if (storage.type === 'fused') {
    return { gate: plain(i, h, gateUp.subarray(0, i * h)), up: plain(i, h, gateUp.subarray(i * h)), down: plain(h, i, down) };
  }
  return {
    gate: plain(i, h, transpose(gateUp, h, 2 * i, 0, 2)),
    up: plain(i, h, transpose(gateUp, h, 2 * i, 1, 2)),
    down: plain(h, i, transpose(down, i, h, 0, 1)),
    bias: await readBiases(stacked as Required<StackedExperts>, bytesOf),
  };
}

/** Rows `first`, `first` + 2, … of a matrix with 2·numRows rows. */
function everySecondRow(bytes: Uint8Array, first: number, numRows: number, into: ReadBuffer): Uint8Array {
  const rowBytes = bytes.length / (2 * numRows);
  const out = into.take(numRows * rowBytes);
  for (let row = 0; row < numRows; row++) {
    const begin = (2 * row + first) * rowBytes;
    out.set(bytes.subarray(begin, begin + rowBytes), row * rowBytes);
  }
  return out;
}

/** Columns `first`, `first` + `step`, … of `values` [rows, columns] as the rows of the result. */
function transpose(values: Uint16Array, rows: number, columns: number, first: number, step: number): Uint16Array {
  const outRows = columns / step;
  const out = new Uint16Array(outRows * rows);
  for (let row = 0; row < outRows; row++) {
    const column = first + row * step;
    for (let k = 0; k < rows; k++) out[row * rows + k] = values[k * columns + column]!;
  }
  return out;
}

async function readBiases(
  { gateUpBias, downBias }: Required<StackedExperts>,
  bytesOf: (info: TensorInfo) => Promise<Uint8Array<ArrayBuffer>>,
): Promise<{ readonly gate: Float32Array; readonly up: Float32Array; readonly down: Float32Array }> {
  const gateUp = biasValues(gateUpBias, await bytesOf(gateUpBias));
  const down = biasValues(downBias, await bytesOf(downBias));
  return { gate: gateUp.filter((_, row) => row % 2 === 0), up: gateUp.filter((_, row) => row % 2 === 1), down };
}

/** Values of a bias, which may be stored in any of the three float types. */
export function biasValues(info: TensorInfo, bytes: Uint8Array<ArrayBuffer>): Float32Array {
  if (info.dtype === 'f32') return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  const patterns = uint16Of(bytes);
  return info.dtype === 'f16' ? f16ToFloat32(patterns) : bf16ToFloat32(patterns);
}
