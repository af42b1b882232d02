import type { PackedStorage } from '@moe-server/core';
import type { CpuAddon, WeightsExternal } from './addon.js';
import { cpuAddon } from './addon.js';
import type { CpuScheme } from './formats.js';
import { handleOf, packedWeights } from './packed-weights.js';
import type { MatrixNotes } from './weights.js';

/** What storing has to know of a layer. */
export interface StoredLayer<Spec> {
  readonly allocate: (addon: CpuAddon, spec: Spec) => WeightsExternal;
  /** Scheme of each matrix, in the addon's order. */
  readonly schemes: (spec: Spec) => readonly CpuScheme[];
}

/** Packed weights as a file has them: the notes of every matrix as JSON, and the two parts of the addon's memory as they are. */
export function packedStorage<Spec extends { readonly name: string }>({
  allocate,
  schemes,
}: StoredLayer<Spec>): PackedStorage<Spec, unknown> {
  return {
    save: ({ name }, packed) => {
      const { weights, notes } = handleOf(name, packed);
      return { notes, parts: cpuAddon().exposeWeights(weights) };
    },
    restore: async (spec, _rule, stored, fill) => {
      const expected = schemes(spec);
      const notes = notesOf(stored, expected);
      const addon = cpuAddon();
      const weights = allocate(addon, spec);
      const parts = addon.exposeWeights(weights);
      try {
        await fill(parts);
      } catch (error) {
        addon.disposeWeights(weights);
        throw error;
      } finally {
        addon.concealWeights(parts);
      }
      return packedWeights(addon, { weights, notes }, [...new Set(expected)]);
    },
  };
}

/** @throws {TypeError} for anything that this version has not written. */
function notesOf(stored: unknown, expected: readonly CpuScheme[]): readonly MatrixNotes[] {
  const notes = stored as readonly MatrixNotes[];
  if (!Array.isArray(stored) || stored.length !== expected.length || notes.some(({ scheme }, i) => scheme !== expected[i]))
    throw new TypeError(`its notes are not those of ${expected.length} matrices in ${[...new Set(expected)].join(' and ')}`);
  return notes;
}
