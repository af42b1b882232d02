import { lstat, readFile, readdir, realpath, stat } from 'node:fs/promises';
import { dirname, join, sep } from 'node:path';
import { MoeError, messageOf } from '../errors.js';
import { isRecord, scanJson } from './json-scan.js';

export const configFile = 'config.json';
export const singleFile = 'model.safetensors';
export const indexFile = 'model.safetensors.index.json';

/** config.json of a mixed model with every expert listed has some ten MB; an index of 10^6 tensors about a hundred. */
const maxJsonBytes = 256 * 2 ** 20;
const maxJsonDepth = 64;
const maxIndexEntries = 1_000_000;
const pickleExtensions = ['.bin', '.pt', '.pth', '.ckpt', '.pkl'];

/** Where the tensors of a model folder are said to lie. */
export interface WeightFiles {
  /** Plain file names, each once. */
  readonly files: readonly string[];
  /** The index's map from tensor to file; undefined for a single file. */
  readonly fileOf: ReadonlyMap<string, string> | undefined;
}

/** @throws {MoeError} MOE_CHECKPOINT_NOT_FOUND when `directory` is not a folder that can be read. */
export async function checkIsFolder(directory: string): Promise<void> {
  let found: 'folder' | 'file';
  try {
    found = (await stat(directory)).isDirectory() ? 'folder' : 'file';
  } catch (cause) {
    throw new MoeError(
      'MOE_CHECKPOINT_NOT_FOUND',
      `There is no model folder at ${directory} (${messageOf(cause)}). Expected a folder with config.json and *.safetensors files.`,
      { directory },
      { cause },
    );
  }
  if (found === 'file') {
    throw new MoeError(
      'MOE_CHECKPOINT_NOT_FOUND',
      `${directory} is a file. Expected the folder that holds config.json and the *.safetensors files.`,
      {
        directory,
      },
    );
  }
}

/**
 * Reads a JSON file of the model folder.
 *
 * @returns undefined when there is no such file.
 * @throws {MoeError} with `code` when it is unreadable, too large, too deep or not valid JSON.
 */
export async function readJson(
  directory: string,
  name: string,
  code: 'MOE_CHECKPOINT_CONFIG' | 'MOE_CHECKPOINT_INDEX' = 'MOE_CHECKPOINT_CONFIG',
): Promise<unknown> {
  const fail = (reason: string, cause?: unknown): MoeError =>
    new MoeError(code, `${name}: ${reason}.`, { file: name }, cause === undefined ? {} : { cause });
  await checkFileName(directory, name, code);
  let bytes: Uint8Array;
  try {
    const found = await stat(join(directory, name));
    if (!found.isFile()) throw fail('it is not a regular file');
    if (found.size > maxJsonBytes) throw fail(`it has ${String(found.size)} bytes; at most ${String(maxJsonBytes)} are allowed`);
    bytes = await readFile(join(directory, name));
  } catch (cause) {
    if (isMissing(cause)) return undefined;
    throw cause instanceof MoeError ? cause : fail(`it cannot be read (${messageOf(cause)})`, cause);
  }
  const { tooDeepAt } = scanJson(bytes, maxJsonDepth);
  if (tooDeepAt >= 0) throw fail(`it nests deeper than ${String(maxJsonDepth)} levels at byte ${String(tooDeepAt)}`);
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)) as unknown;
  } catch (cause) {
    throw fail(`it is not valid JSON in UTF-8 (${messageOf(cause)})`, cause);
  }
}

/**
 * Finds the weight files: `model.safetensors`, else what `model.safetensors.index.json` lists.
 *
 * @throws {MoeError} MOE_CHECKPOINT_NOT_FOUND when there are none, with advice where pickle files lie there; MOE_CHECKPOINT_INDEX when the
 *   index is malformed or names a file outside the folder.
 */
export async function findWeightFiles(directory: string): Promise<WeightFiles> {
  if (await exists(join(directory, singleFile))) {
    await checkFileName(directory, singleFile, 'MOE_CHECKPOINT_READ');
    return { files: [singleFile], fileOf: undefined };
  }
  const index = await readJson(directory, indexFile, 'MOE_CHECKPOINT_INDEX');
  if (index === undefined) throw await noWeights(directory);
  const map = isRecord(index) ? index.weight_map : undefined;
  if (!isRecord(map)) throw indexError('weight_map', 'expected an object {"weight_map": {tensor: file}}');
  const fileOf = new Map<string, string>();
  /** Each with the first tensor in it, for messages. */
  const files = new Map<string, string>();
  for (const tensor in map) {
    const file = map[tensor];
    if (typeof file !== 'string')
      throw indexError(tensor, `tensor ${tensor}: expected a file name, got ${JSON.stringify(file).slice(0, 80)}`);
    fileOf.set(tensor, file);
    if (!files.has(file)) files.set(file, tensor);
    if (fileOf.size > maxIndexEntries) throw indexError('weight_map', `it lists more than ${String(maxIndexEntries)} tensors`);
  }
  if (fileOf.size === 0) throw indexError('weight_map', 'it lists no tensors');
  for (const [file, tensor] of files) {
    if (!file.endsWith('.safetensors')) {
      throw indexError(
        tensor,
        `tensor ${tensor} lies in ${JSON.stringify(file)}, which is not a .safetensors file; only safetensors are read`,
      );
    }
    await checkFileName(directory, file, 'MOE_CHECKPOINT_INDEX', tensor);
    if (!(await exists(join(directory, file)))) {
      throw indexError(
        tensor,
        `it names the shard ${file} (tensor ${tensor} and others), which is missing. Download the checkpoint again`,
        { shard: file },
      );
    }
  }
  return { files: [...files.keys()].sort(), fileOf };
}

function indexError(tensor: string, reason: string, details: Readonly<Record<string, unknown>> = {}): MoeError {
  return new MoeError('MOE_CHECKPOINT_INDEX', `${indexFile}: ${reason}.`, { file: indexFile, tensor, ...details });
}

/**
 * Refuses names that could lead out of the folder: separators, `..`, and links that point elsewhere. Links into the folder are followed,
 * and so are those of the Hugging Face cache, whose snapshots hold nothing but links into the `blobs` folder beside them.
 */
async function checkFileName(
  directory: string,
  name: string,
  code: 'MOE_CHECKPOINT_CONFIG' | 'MOE_CHECKPOINT_INDEX' | 'MOE_CHECKPOINT_READ',
  tensor?: string,
): Promise<void> {
  const fail = (reason: string): MoeError =>
    new MoeError(
      code,
      `${tensor === undefined ? '' : `${indexFile}: tensor ${tensor}: `}the file name ${JSON.stringify(name.slice(0, 200))} ${reason}.`,
      {
        file: name,
        ...(tensor === undefined ? {} : { tensor }),
      },
    );
  if (name === '' || name === '.' || name === '..' || name.length > 255 || /[/\\\0]/.test(name)) {
    throw fail('is not a plain name. Files must lie in the model folder itself');
  }
  const path = join(directory, name);
  try {
    if (!(await lstat(path)).isSymbolicLink()) return;
    const folder = await realpath(directory);
    const target = await realpath(path);
    const blobs = join(dirname(dirname(folder)), 'blobs');
    if (target.startsWith(folder + sep) || target.startsWith(blobs + sep)) return;
  } catch (cause) {
    if (isMissing(cause)) return;
    throw fail(`cannot be resolved (${messageOf(cause)})`);
  }
  throw fail(
    'is a link that leads out of the model folder. Only links within it, or into the blobs folder of the Hugging Face cache, are followed',
  );
}

async function noWeights(directory: string): Promise<MoeError> {
  const names = await readdir(directory);
  const pickles = names.filter((name) => pickleExtensions.some((extension) => name.endsWith(extension)));
  const shards = names.filter((name) => name.endsWith('.safetensors'));
  let advice = 'Is the download complete?';
  if (shards.length > 0)
    advice = `${shards.slice(0, 3).join(', ')} lie there, but without an index nothing says which tensors belong together.`;
  else if (pickles.length > 0) {
    advice = `It holds ${pickles.slice(0, 3).join(', ')}: pickle files can execute code and are never read. Convert to safetensors first.`;
  }
  return new MoeError('MOE_CHECKPOINT_NOT_FOUND', `${directory} has neither ${singleFile} nor ${indexFile}. ${advice}`, {
    directory,
    found: names.slice(0, 20),
  });
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (cause) {
    if (isMissing(cause)) return false;
    throw new MoeError('MOE_CHECKPOINT_READ', `${path} cannot be examined (${messageOf(cause)}).`, { file: path }, { cause });
  }
}

function isMissing(cause: unknown): boolean {
  return cause instanceof Error && 'code' in cause && cause.code === 'ENOENT';
}
