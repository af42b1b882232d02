import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Root of the repository. */
export const repositoryRoot = fileURLToPath(new URL('../../../../', import.meta.url));

/** The bundled model. */
export const pocketDictionary = join(repositoryRoot, 'models/pocket-dictionary');

/**
 * Folders of the reference checkpoints: the committed ones, and all in `MOE_FIXTURES` where that is set (it wins for equal names).
 * What lies in them is described in test/fixtures/README.md.
 */
export function fixtureFolders(): string[] {
  const byName = new Map<string, string>();
  for (const root of [join(repositoryRoot, 'test/fixtures'), process.env.MOE_FIXTURES]) {
    if (root === undefined || !existsSync(root)) continue;
    for (const name of readdirSync(root)) {
      if (existsSync(join(root, name, 'reference.json'))) byName.set(name, join(root, name));
    }
  }
  return [...byName.values()].sort((a, b) => basename(a).localeCompare(basename(b)));
}

/** One of them by name, or undefined where it is not at hand. */
export function fixtureFolder(name: string): string | undefined {
  return fixtureFolders().find((folder) => basename(folder) === name);
}

export interface ReferenceTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** Reads a whole safetensors file of a test. The product's own reader is tested against this one. */
export function readSafetensors(file: string): Map<string, ReferenceTensor> {
  const data = readFileSync(file);
  const headerLength = Number(data.readBigUInt64LE(0));
  const header = JSON.parse(data.toString('utf8', 8, 8 + headerLength)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, ReferenceTensor>();
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const bytes = new Uint8Array(data.subarray(8 + headerLength + offsets[0], 8 + headerLength + offsets[1]));
    tensors.set(name, { dtype, shape, bytes });
  }
  return tensors;
}

/** Values of an F32, I32 or BF16 tensor as numbers. */
export function valuesOf(tensor: ReferenceTensor): Float32Array | Int32Array {
  const { buffer } = tensor.bytes;
  if (tensor.dtype === 'F32') return new Float32Array(buffer);
  if (tensor.dtype === 'I32') return new Int32Array(buffer);
  if (tensor.dtype === 'BF16') {
    const bits = Uint32Array.from(new Uint16Array(buffer), (half) => half << 16);
    return new Float32Array(bits.buffer);
  }
  throw new TypeError(`expected F32, I32 or BF16, got ${tensor.dtype}`);
}

/** |a - reference|₂ / |reference|₂. */
export function relativeL2(a: ArrayLike<number>, reference: ArrayLike<number>): number {
  if (a.length !== reference.length) throw new RangeError(`lengths differ: ${String(a.length)} and ${String(reference.length)}`);
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < reference.length; i++) {
    difference += ((a[i] ?? 0) - (reference[i] ?? 0)) ** 2;
    norm += (reference[i] ?? 0) ** 2;
  }
  return Math.sqrt(difference / norm);
}

export { measureProcess, type MeasuredProcess } from './measured-process.js';
export { writeSparseCheckpoint, type SparseModel, type SparseTensor } from './sparse-checkpoint.js';
export { deepseekV3, mixedQwen35Moe, type SparseStorage } from './sparse-models.js';
