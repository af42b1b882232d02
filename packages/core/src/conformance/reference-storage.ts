import type { PackedImage, PackedStorage, PackedWeights } from '../backend.js';
import { SCHEME } from '../quant/quant-scheme.js';

const arrayTypes = { Uint8Array, Uint16Array, Float32Array } as const;
type ArrayType = keyof typeof arrayTypes;

/** One value of a matrix as notes have it. */
type Note =
  | { readonly type: 'array'; readonly arrayType: ArrayType; readonly part: number; readonly byteLength: number }
  | { readonly type: 'object'; readonly scheme: string | undefined; readonly members: readonly (readonly [string, Note])[] }
  | { readonly type: 'value'; readonly value?: unknown };

/**
 * Storage for weights that are plain objects of typed arrays: the arrays are the parts, everything else is notes.
 *
 * @param matricesOf - of packed weights; @param pack - the inverse.
 */
export function objectStorage<Spec, T>(
  matricesOf: (packed: PackedWeights) => readonly T[],
  pack: (spec: Spec, matrices: readonly T[]) => PackedWeights,
): PackedStorage<Spec, unknown> {
  return {
    save: (_spec, packed) => imageOf(matricesOf(packed)),
    restore: async (spec, _rule, stored, fill) => {
      const notes = stored as readonly Note[];
      const places: Uint8Array<ArrayBuffer>[] = [];
      allocate({ type: 'object', scheme: undefined, members: notes.map((note, i) => [String(i), note]) }, places);
      await fill(places);
      return pack(
        spec,
        notes.map((note) => valueOf(note, places) as T),
      );
    },
  };
}

function imageOf(matrices: readonly unknown[]): PackedImage {
  const parts: Uint8Array[] = [];
  return { notes: matrices.map((matrix) => noteOf(matrix, parts)), parts };
}

function noteOf(value: unknown, parts: Uint8Array[]): Note {
  if (ArrayBuffer.isView(value)) {
    const { buffer, byteOffset, byteLength } = value;
    const bytes = new Uint8Array(buffer, byteOffset, byteLength);
    parts.push(byteOffset % 4 === 0 ? bytes : bytes.slice());
    return { type: 'array', arrayType: value.constructor.name as ArrayType, part: parts.length - 1, byteLength };
  }
  if (typeof value !== 'object' || value === null) return value === undefined ? { type: 'value' } : { type: 'value', value };
  const { [SCHEME]: scheme } = value as { readonly [SCHEME]?: string };
  return { type: 'object', scheme, members: Object.entries(value).map(([key, member]) => [key, noteOf(member, parts)]) };
}

function allocate(note: Note, places: Uint8Array<ArrayBuffer>[]): void {
  if (note.type === 'array') places[note.part] = new Uint8Array(note.byteLength);
  else if (note.type === 'object') for (const [, member] of note.members) allocate(member, places);
}

function valueOf(note: Note, places: readonly Uint8Array<ArrayBuffer>[]): unknown {
  switch (note.type) {
    case 'array':
      return new arrayTypes[note.arrayType](places[note.part]!.buffer);
    case 'object':
      return {
        ...Object.fromEntries(note.members.map(([key, member]) => [key, valueOf(member, places)])),
        ...(note.scheme === undefined ? {} : { [SCHEME]: note.scheme }),
      };
    case 'value':
      return note.value;
  }
}
