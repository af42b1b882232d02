import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { ErrorCode } from '@moe-server/core';
import { messageOf, MoeError } from '@moe-server/core';

/** Tokenizer files of published models reach 35 MB. */
const maxFileBytes = 256 * 2 ** 20;

/**
 * Reads a text file of a model folder; undefined where there is none.
 *
 * @throws {MoeError} with `code`, naming the file, when it is too large or cannot be read.
 */
export async function readTextFile(directory: string, file: string, code: ErrorCode): Promise<string | undefined> {
  const path = join(directory, file);
  try {
    const found = await stat(path);
    if (!found.isFile()) throw new MoeError(code, `cannot read ${path}: it is not a regular file`, { file });
    const { size } = found;
    if (size > maxFileBytes) {
      throw new MoeError(code, `${path} has ${String(size)} bytes; at most ${String(maxFileBytes)} are read`, { file, size });
    }
    return await readFile(path, 'utf8');
  } catch (error) {
    if (error instanceof MoeError) throw error;
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new MoeError(code, `cannot read ${path}: ${messageOf(error)}`, { file }, { cause: error });
  }
}

/**
 * The same for a file that holds a JSON object.
 *
 * @throws {MoeError} with `code`, naming the file, also when it holds something else.
 */
export async function readJsonFile(
  directory: string,
  file: string,
  code: ErrorCode,
): Promise<Readonly<Record<string, unknown>> | undefined> {
  const text = await readTextFile(directory, file, code);
  return text === undefined ? undefined : parseJsonObject(text, join(directory, file), code);
}

/** @throws {MoeError} with `code`, naming the file. */
export function parseJsonObject(text: string, path: string, code: ErrorCode): Readonly<Record<string, unknown>> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new MoeError(code, `${path} is not valid JSON: ${messageOf(error)}`, { file: path }, { cause: error });
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  throw new MoeError(code, `${path}: expected a JSON object`, { file: path });
}
