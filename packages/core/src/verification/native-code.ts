import { statSync } from 'node:fs';
import { createRequire } from 'node:module';

/** A loaded addon, as far as a change of it shows. */
export interface NativeCode {
  readonly file: string;
  readonly byteLength: number;
  readonly modifiedMs: number;
}

/**
 * Every addon that this process has loaded, by path: a kernel's own, and the executor's that calls it. All of them, because nothing tells which
 * addon a kernel came from.
 */
export function loadedNativeCode(): readonly NativeCode[] {
  // One cache for all of a process's require functions.
  const files = Object.keys(createRequire(import.meta.url).cache).filter((file) => file.endsWith('.node'));
  return files.sort().map((file) => {
    const stat = statSync(file, { throwIfNoEntry: false });
    return { file, byteLength: stat?.size ?? 0, modifiedMs: stat?.mtimeMs ?? 0 };
  });
}
