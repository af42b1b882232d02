import { MoeError } from '../errors.js';
import { isRecord } from './json-scan.js';

export interface IntegerRange {
  /** Default 1. */
  readonly min?: number;
  readonly max: number;
}

/** Bounds no model of today comes near; they keep a hostile or broken file from turning into an allocation. */
export const sane = {
  hiddenSize: { max: 2 ** 18 },
  intermediateSize: { max: 2 ** 20 },
  layers: { max: 4096 },
  heads: { max: 4096 },
  headDim: { max: 4096 },
  experts: { max: 16_384 },
  vocabulary: { max: 2 ** 24 },
  positions: { max: 2 ** 31 },
} as const satisfies Record<string, IntegerRange>;

/**
 * Typed access to config.json. Every field that is read is checked; what is wrong is a MOE_CHECKPOINT_CONFIG that names the field, what was
 * expected and what came. Fields of `text_config` (multimodal models) win over those at the top.
 */
export class ConfigReader {
  readonly file: string;
  readonly #sections: readonly { readonly path: string; readonly fields: Readonly<Record<string, unknown>> }[];

  private constructor(file: string, sections: readonly { readonly path: string; readonly fields: Readonly<Record<string, unknown>> }[]) {
    this.file = file;
    this.#sections = sections;
  }

  /** @param file - for messages. */
  static of(config: Readonly<Record<string, unknown>>, file = 'config.json'): ConfigReader {
    const text = config.text_config;
    const top = { path: '', fields: config };
    return new ConfigReader(file, isRecord(text) ? [{ path: 'text_config.', fields: text }, top] : [top]);
  }

  /** An object among the fields, undefined when absent or null. */
  section(field: string): ConfigReader | undefined {
    const { value, path } = this.#find(field);
    if (value === undefined) return undefined;
    if (!isRecord(value)) throw this.error(path, 'an object', value);
    return new ConfigReader(this.file, [{ path: `${path}.`, fields: value }]);
  }

  /**
   * RoPE parameters under either of their names: `rope_parameters` of new files (which holds rope_theta and partial_rotary_factor too), or
   * `rope_scaling` of old ones. Undefined when neither is set.
   */
  ropeParameters(): ConfigReader | undefined {
    return this.section('rope_parameters') ?? this.section('rope_scaling');
  }

  /** `rope_theta`, wherever it stands. */
  ropeTheta(fallback?: number): number {
    const nested = this.section('rope_parameters');
    if (nested?.has('rope_theta') === true) return nested.number('rope_theta');
    return this.number('rope_theta', fallback);
  }

  /** `dtype`, or `torch_dtype` of older files. */
  dtype(): string | undefined {
    return this.optionalString('dtype') ?? this.optionalString('torch_dtype');
  }

  has(field: string): boolean {
    return this.#find(field).value !== undefined;
  }

  /** The value as it stands, undefined when absent or null. */
  raw(field: string): unknown {
    return this.#find(field).value;
  }

  /** An integer within `range`; `fallback` when absent, an error without one. */
  integer(field: string, range: IntegerRange, fallback?: number): number {
    const { value, path } = this.#find(field);
    if (value === undefined && fallback !== undefined) return fallback;
    const min = range.min ?? 1;
    if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > range.max) {
      throw this.error(path, `an integer from ${String(min)} to ${String(range.max)}`, value);
    }
    return value;
  }

  /** As {@link integer}, undefined when absent or null. */
  optionalInteger(field: string, range: IntegerRange): number | undefined {
    return this.has(field) ? this.integer(field, range) : undefined;
  }

  /** The first of several names that is set: families name the same thing differently. */
  firstInteger(fields: readonly string[], range: IntegerRange): number {
    return this.integer(fields.find((field) => this.has(field)) ?? fields[0] ?? '', range);
  }

  /** A finite number. */
  number(field: string, fallback?: number): number {
    const { value, path } = this.#find(field);
    if (value === undefined && fallback !== undefined) return fallback;
    if (typeof value !== 'number' || !Number.isFinite(value)) throw this.error(path, 'a finite number', value);
    return value;
  }

  boolean(field: string, fallback: boolean): boolean {
    const { value, path } = this.#find(field);
    if (value === undefined) return fallback;
    if (typeof value !== 'boolean') throw this.error(path, 'true or false', value);
    return value;
  }

  string(field: string, fallback?: string): string {
    const { value, path } = this.#find(field);
    if (value === undefined && fallback !== undefined) return fallback;
    if (typeof value !== 'string') throw this.error(path, 'a string', value);
    return value;
  }

  optionalString(field: string): string | undefined {
    return this.has(field) ? this.string(field) : undefined;
  }

  /** A list of strings, undefined when absent. */
  optionalStrings(field: string): readonly string[] | undefined {
    const { value, path } = this.#find(field);
    if (value === undefined) return undefined;
    if (!Array.isArray(value) || !value.every((entry) => typeof entry === 'string')) throw this.error(path, 'a list of strings', value);
    return value;
  }

  /** A list of non-negative integers, empty when absent. */
  integers(field: string): readonly number[] {
    const { value, path } = this.#find(field);
    if (value === undefined) return [];
    if (!Array.isArray(value) || !value.every((entry) => Number.isSafeInteger(entry) && (entry as number) >= 0)) {
      throw this.error(path, 'a list of non-negative integers', value);
    }
    return value as number[];
  }

  /** The error for a field that is wrong in a way only the caller can see. */
  error(field: string, expected: string, actual: unknown): MoeError {
    const came = actual === undefined ? 'it is missing' : `got ${JSON.stringify(actual ?? null).slice(0, 80)}`;
    return new MoeError('MOE_CHECKPOINT_CONFIG', `${this.file}: ${field}: expected ${expected}, ${came}.`, {
      file: this.file,
      field,
      expected,
      actual: actual ?? null,
    });
  }

  #find(field: string): { readonly value: unknown; readonly path: string } {
    for (const { path, fields } of this.#sections) {
      const value = Object.hasOwn(fields, field) ? fields[field] : undefined;
      if (value !== undefined && value !== null) return { value, path: path + field };
    }
    return { value: undefined, path: (this.#sections[0]?.path ?? '') + field };
  }
}
