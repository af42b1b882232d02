import { parseArgs } from 'node:util';
import type { ParseArgsConfig } from 'node:util';

/** A mistake on the command line: printed with a pointer to the help, exit status 64. */
export class UsageError extends Error {}

/** Node's parseArgs. @throws {UsageError} for a flag that is none. */
export function parseArguments<const T extends ParseArgsConfig>(config: T): ReturnType<typeof parseArgs<T>> {
  try {
    return parseArgs(config);
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

/** A whole number of at least 1. @throws {UsageError}. */
export function count(name: string, text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 1) return value;
  throw new UsageError(`--${name} must be a whole number of at least 1, got "${text}".`);
}

/** Zero or more. @throws {UsageError}. */
export function seconds(name: string, text: string): number {
  const value = Number(text);
  if (text !== '' && value >= 0) return value;
  throw new UsageError(`--${name} must be a number of seconds, got "${text}".`);
}

/** Whole numbers between commas; empty = none. @throws {UsageError}. */
export function counts(name: string, text: string): number[] {
  return text === '' ? [] : text.split(',').map((part) => count(name, part));
}
