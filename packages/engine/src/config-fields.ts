import { MoeError } from '@moe-server/core';

/** Checked access to the fields of one JSON object. JSON's null counts as absent, as Python writes None. */
export class ConfigFields {
  readonly #file: string;
  readonly #values: Readonly<Record<string, unknown>>;

  /** @param value - anything; what is not an object has no fields. */
  constructor(file: string, value: unknown) {
    this.#file = file;
    this.#values = isRecord(value) ? value : {};
  }

  /** @throws {MoeError} MOE_CHECKPOINT_CONFIG, as all of these, when the field is not what it should be. */
  count(field: string): number {
    const value = this.optionalCount(field);
    if (value === undefined) throw this.invalid(field, 'a whole number above 0');
    return value;
  }

  optionalCount(field: string): number | undefined {
    const value = this.#values[field] ?? undefined;
    if (value === undefined) return undefined;
    if (!Number.isSafeInteger(value) || (value as number) < 1) throw this.invalid(field, 'a whole number above 0');
    return value as number;
  }

  number(field: string, fallback?: number): number {
    const value = this.optionalNumber(field) ?? fallback;
    if (value === undefined) throw this.invalid(field, 'a number');
    return value;
  }

  optionalNumber(field: string): number | undefined {
    const value = this.#values[field] ?? undefined;
    if (value === undefined) return undefined;
    if (typeof value !== 'number' || !Number.isFinite(value)) throw this.invalid(field, 'a number');
    return value;
  }

  boolean(field: string, fallback: boolean): boolean {
    const value = this.#values[field] ?? fallback;
    if (typeof value !== 'boolean') throw this.invalid(field, 'true or false');
    return value;
  }

  string(field: string, fallback: string): string {
    const value = this.#values[field] ?? fallback;
    if (typeof value !== 'string') throw this.invalid(field, 'a string');
    return value;
  }

  /** One whole number or a list of them. */
  wholeNumbers(field: string): readonly number[] | undefined {
    const value = this.#values[field] ?? undefined;
    if (value === undefined) return undefined;
    const list: readonly unknown[] = Array.isArray(value) ? value : [value];
    if (!list.every((id) => Number.isSafeInteger(id) && (id as number) >= 0)) throw this.invalid(field, 'a whole number or a list of them');
    return list as readonly number[];
  }

  optionalRecord(field: string): ConfigFields | undefined {
    const value = this.#values[field] ?? undefined;
    if (value === undefined) return undefined;
    if (!isRecord(value)) throw this.invalid(field, 'an object');
    return new ConfigFields(this.#file, value);
  }

  /** The error for a field that is not `expected`. */
  invalid(field: string, expected: string): MoeError {
    const actual = this.#values[field];
    const came = actual === undefined || actual === null ? 'nothing' : JSON.stringify(actual);
    return new MoeError('MOE_CHECKPOINT_CONFIG', `"${field}" in ${this.#file} must be ${expected}; there is ${came}.`, {
      file: this.#file,
      field,
      expected,
      actual,
    });
  }
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
