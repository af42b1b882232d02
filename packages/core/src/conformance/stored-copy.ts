import type { PackContext, PackedStorage, PackedWeights } from '../backend.js';
import { expectThat } from './comparison.js';

/** What a storage case needs of a subject. */
export interface StoredCopy {
  /** The packed weights after they were saved and restored. @param damage - what filling is to reject with. */
  readonly copy: (damage?: Error) => Promise<PackedWeights>;
}

/**
 * Saves and restores as the core does, with memory for a file; notes go through JSON.
 *
 * @throws {Error} where the storage does not keep to the contract.
 */
export function storedCopy<Spec, Rule>(
  name: string,
  storage: PackedStorage<Spec, Rule> | undefined,
  {
    spec,
    rule,
    packed,
    context,
  }: { readonly spec: Spec; readonly rule: Rule; readonly packed: PackedWeights; readonly context: PackContext },
): StoredCopy | undefined {
  if (storage === undefined) return undefined;
  return {
    copy: async (damage) => {
      const { notes, parts } = storage.save(spec, packed);
      expectThat(
        parts.every(({ byteOffset }) => byteOffset % 4 === 0),
        `${name}: a part that is saved does not begin at a multiple of four in its buffer.`,
      );
      const file = parts.map((part) => part.slice());
      let numFilled = 0;
      const fill = (places: readonly Uint8Array[]): Promise<void> => {
        numFilled++;
        if (damage !== undefined) return Promise.reject(damage);
        const lengths = JSON.stringify(places.map(({ length }) => length));
        const saved = JSON.stringify(file.map(({ length }) => length));
        expectThat(lengths === saved, `${name}: parts of ${saved} bytes were saved, restoring fills ${lengths}.`);
        places.forEach((place, i) => {
          place.set(file[i]!);
        });
        return Promise.resolve();
      };
      const restored = await storage.restore(spec, rule, JSON.parse(JSON.stringify(notes)), fill, context);
      expectThat(numFilled === 1, `${name}: restoring fills its memory ${numFilled} times, expected once.`);
      return restored;
    },
  };
}
