import { mkdir, stat } from 'node:fs/promises';
import { dirname } from 'node:path';

/**
 * Makes a folder with its parents, as `mkdir` with `recursive` does, but always ends: where a file system answers ENOENT to a folder whose
 * parent is there, as /proc does, Node 20's own tries for ever.
 *
 * @throws {Error} of the file system.
 */
export async function makeDirectory(path: string): Promise<void> {
  try {
    await mkdir(path);
  } catch (thrown) {
    if (await isDirectory(path)) return;
    const parent = dirname(path);
    if (codeOf(thrown) !== 'ENOENT' || parent === path) throw thrown;
    await makeDirectory(parent);
    await mkdir(path).catch(async (again: unknown) => {
      if (!(await isDirectory(path))) throw again;
    });
  }
}

async function isDirectory(path: string): Promise<boolean> {
  return await stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
}

function codeOf(thrown: unknown): unknown {
  return thrown instanceof Error && 'code' in thrown ? thrown.code : undefined;
}
