import type { DeviceInfo, PackContext, PackedWeights } from '@moe-server/core';
import { MoeError, ReadBuffer, SCHEME, messageOf } from '@moe-server/core';
import type { CpuAddon, WeightsExternal } from './addon.js';
import { layout } from './support.js';
import type { MatrixNotes, PackableMatrix } from './weights.js';
import { sourceBytes } from './weights.js';

/** What `PackedWeights.handle` of this package is. */
export interface CpuHandle {
  readonly weights: WeightsExternal;
  /** Per matrix, in the addon's order. */
  readonly notes: readonly MatrixNotes[];
}

/** One unit of packing: an expert, or a module of a linear. */
export interface PackUnit {
  /** Index of its first matrix. */
  readonly firstMatrix: number;
  /** Reads its matrices, into memory that is not used for another unit before this one is packed. */
  readonly read: (into: ReadBuffer) => Promise<readonly { readonly name: string; readonly matrix: PackableMatrix }[]>;
}

/** Peak memory is this many units above the packed size. */
export const maxUnitsInFlight = 8;
const minUnitsInFlight = 3;

/** Units that are read and packed at the same time: while one is read, every thread packs another. */
function unitsInFlight(device: DeviceInfo): number {
  const numThreads = device.type === 'cpu' ? device.numThreads : 1;
  return Math.min(Math.max(numThreads + 1, minUnitsInFlight), maxUnitsInFlight);
}

/**
 * Fills packed weights unit by unit.
 *
 * @throws {MoeError} MOE_CHECKPOINT_TENSOR for NaN in codes or scales; whatever reading throws. The weights are disposed then.
 */
export async function packUnits(
  addon: CpuAddon,
  weights: WeightsExternal,
  units: readonly PackUnit[],
  schemes: readonly string[],
  context: PackContext,
): Promise<PackedWeights> {
  const notes: MatrixNotes[] = [];
  let next = 0;
  let failed = false;
  const lane = async (): Promise<void> => {
    const memory = new ReadBuffer();
    for (let unit = units[next++]; unit !== undefined && !failed; unit = units[next++]) {
      context.signal?.throwIfAborted();
      const { firstMatrix, read } = unit;
      const matrices = await read(memory);
      const jobs = matrices.map(({ name, matrix }, i) => {
        notes[firstMatrix + i] = matrix.notes;
        return addon.packMatrix(weights, firstMatrix + i, matrix.source).catch((error: unknown) => {
          throw packError(name, error);
        });
      });
      await Promise.all(jobs);
      context.onProgress?.(matrices.reduce((sum, { matrix }) => sum + sourceBytes(matrix.source), 0));
    }
  };
  const lanes = Array.from({ length: Math.min(unitsInFlight(context.device), units.length) }, () =>
    lane().catch((error: unknown) => {
      failed = true;
      throw error;
    }),
  );
  const results = await Promise.allSettled(lanes);
  const rejected = results.find((result) => result.status === 'rejected');
  if (rejected !== undefined) {
    addon.disposeWeights(weights);
    throw rejected.reason;
  }
  return packedWeights(addon, { weights, notes }, schemes);
}

/** The contract's object around weights that are packed. */
export function packedWeights(addon: CpuAddon, handle: CpuHandle, schemes: readonly string[]): PackedWeights {
  return {
    layout,
    [SCHEME]: schemes,
    residentBytes: addon.weightsBytes(handle.weights),
    handle,
    dispose: () => {
      addon.disposeWeights(handle.weights);
    },
  };
}

/** Calls the addon's allocator. @throws {MoeError} MOE_DEVICE_MEMORY. */
export function allocateWeights(name: string, bytes: number, allocate: () => WeightsExternal): WeightsExternal {
  try {
    return allocate();
  } catch (error) {
    if (codeOf(error) !== 'OUT_OF_MEMORY') throw error;
    throw new MoeError(
      'MOE_DEVICE_MEMORY',
      `${name}: there are no ${bytes} bytes left for its packed weights. Use a machine with more memory, or a smaller checkpoint.`,
      { layer: name, bytes },
      { cause: error },
    );
  }
}

/**
 * The handle inside packed weights.
 *
 * @throws {MoeError} MOE_PLUGIN_BRAND for weights of another layout.
 */
export function handleOf(name: string, packed: PackedWeights): CpuHandle {
  if (packed.layout !== layout) {
    throw new MoeError(
      'MOE_PLUGIN_BRAND',
      `${name}: the cpu backend reads the layout ${layout}, the packed weights have ${packed.layout}.`,
      {
        layer: name,
        expected: layout,
        actual: packed.layout,
      },
    );
  }
  return packed.handle as CpuHandle;
}

function codeOf(error: unknown): unknown {
  return typeof error === 'object' && error !== null && 'code' in error ? error.code : undefined;
}

function packError(name: string, error: unknown): unknown {
  const code = codeOf(error);
  if (code !== 'NAN_CODE' && code !== 'BAD_SCALE') return error;
  return new MoeError(
    'MOE_CHECKPOINT_TENSOR',
    `${name}: ${messageOf(error)}. The checkpoint is damaged, or was exported wrongly; download or export it again.`,
    { matrix: name },
    { cause: error },
  );
}
