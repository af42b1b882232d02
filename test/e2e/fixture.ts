import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { ReferenceTensor } from '@moe-server/test-kit';
import { readSafetensors, valuesOf } from '@moe-server/test-kit';

export type Mode = 'weight_only' | 'weight_only_kv';

export interface Tolerance {
  readonly logits_last_rel_l2: number;
  readonly logits_last_max_abs: number;
  readonly logits_all_rel_l2: number;
  readonly row_rel_l2_p90: number;
  readonly row_rel_l2_worst: number;
  readonly moe_block_rel_l2: number;
}

export interface Prompt {
  readonly id: string;
  readonly input_ids: readonly number[];
}

/** reference.json, as far as tests read it; the fixtures' README describes the fields. */
interface ReferenceJson {
  readonly modes: Readonly<Record<string, string>>;
  readonly prompts: readonly Prompt[];
  readonly greedy: Readonly<
    Record<string, Readonly<Record<string, { readonly ids: readonly number[]; readonly margins: readonly number[] }>>>
  >;
  readonly tolerance: Readonly<Record<string, Tolerance>>;
}

/** A reference checkpoint with its recorded results. */
export class Fixture {
  readonly folder: string;
  readonly name: string;
  readonly architecture: string;
  readonly #json: ReferenceJson;
  #tensors: ReadonlyMap<string, ReferenceTensor> | undefined;

  constructor(folder: string) {
    this.folder = folder;
    this.name = basename(folder);
    const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as { architectures: [string] };
    this.architecture = config.architectures[0];
    this.#json = JSON.parse(readFileSync(join(folder, 'reference.json'), 'utf8')) as ReferenceJson;
  }

  has(mode: Mode): boolean {
    return mode in this.#json.modes;
  }

  get prompts(): readonly Prompt[] {
    return this.#json.prompts;
  }

  prompt(id: string): readonly number[] {
    const prompt = this.prompts.find((candidate) => candidate.id === id);
    if (prompt === undefined) throw new RangeError(`${this.name} has no prompt ${id}`);
    return prompt.input_ids;
  }

  tolerance(mode: Mode): Tolerance {
    return this.#required(this.#json.tolerance[mode], `tolerance ${mode}`);
  }

  /** The greedy continuation, and by how much each token's logit was ahead of the next best. */
  greedy(mode: Mode, id: string): { readonly ids: readonly number[]; readonly margins: readonly number[] } {
    return this.#required(this.#json.greedy[mode]?.[id], `greedy ${mode} ${id}`);
  }

  tensor(name: string): Float32Array | Int32Array {
    this.#tensors ??= readSafetensors(join(this.folder, 'reference.safetensors'));
    return valuesOf(this.#required(this.#tensors.get(name), name));
  }

  hasTensor(name: string): boolean {
    this.#tensors ??= readSafetensors(join(this.folder, 'reference.safetensors'));
    return this.#tensors.has(name);
  }

  /** Rows of a two-dimensional tensor. */
  rows(name: string, width: number): (Float32Array | Int32Array)[] {
    const values = this.tensor(name);
    return Array.from({ length: values.length / width }, (_, row) => values.subarray(row * width, (row + 1) * width));
  }

  #required<T>(value: T | undefined, what: string): T {
    if (value === undefined) throw new RangeError(`${this.name} has no ${what}`);
    return value;
  }
}
