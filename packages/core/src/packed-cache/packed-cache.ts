import { createHash } from 'node:crypto';
import { readdir, realpath, rm, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { PackedImage, PackedWeights, RestoreParts } from '../backend.js';
import type { Checkpoint } from '../checkpoint/checkpoint.js';
import { messageOf } from '../errors.js';
import type { LayerSpec } from '../layer-spec.js';
import { makeDirectory } from '../make-directory.js';
import { formatBytes } from '../oracle/memory.js';
import { canonicalJson } from '../oracle/plan-hash.js';
import { contractVersion } from '../plugin.js';
import type { Logger } from '../tokens.js';
import { loadedNativeCode } from '../verification/native-code.js';
import type { PackedFile } from './packed-file.js';
import { openPackedFile, writePackedFile } from './packed-file.js';

/** A layer in one layout, and who packs it. */
export interface PackedEntry {
  readonly spec: LayerSpec;
  readonly layout: string;
  readonly packer: { readonly name: string; readonly plugin: string };
}

/** Packed weights of one checkpoint on disk. Everything here may be deleted at any time; nothing that fails here fails a start. */
export interface PackedCache {
  /**
   * Restores a layer that was packed before.
   *
   * @param restore - has the parts filled, and makes packed weights of them; frees what it made when filling fails.
   * @returns undefined when there is no file of it, or none that fits; a damaged one is reported.
   */
  readonly restore: (
    entry: PackedEntry,
    restore: (notes: unknown, fill: RestoreParts) => Promise<PackedWeights>,
  ) => Promise<PackedWeights | undefined>;
  /** Keeps a layer, unless the file that is there is of the same. Never throws; after a first failure nothing more is written. */
  readonly save: (entry: PackedEntry, image: () => PackedImage) => Promise<void>;
  /** What was done so far. */
  readonly counts: () => PackedCacheCounts;
}

export interface PackedCacheCounts {
  readonly directory: string;
  readonly numRestored: number;
  readonly numSaved: number;
  readonly savedBytes: number;
}

export interface PackedCacheOptions {
  /** Folder of all models' packed weights. */
  readonly directory: string;
  readonly checkpoint: Checkpoint;
  /** Names and versions of the loaded plugins. */
  readonly plugins: readonly { readonly name: string; readonly version: string }[];
  readonly logger: Logger;
}

/** A draft that nobody has written to for so long is one of a process that died. */
const abandonedMs = 10 * 60 * 1000;

/**
 * Opens the folder of a checkpoint: one for each model folder, so that packing a changed checkpoint replaces what was packed of the old one.
 *
 * @throws {MoeError} MOE_CHECKPOINT_READ, of the checkpoint only.
 */
export async function openPackedCache({ directory, checkpoint, plugins, logger }: PackedCacheOptions): Promise<PackedCache> {
  const model = await realpath(checkpoint.directory).catch(() => checkpoint.directory);
  const folder = join(directory, `${fileNameOf(basename(model))}-${sha256(model).slice(0, 12)}`);
  const identity = await checkpoint.identity();
  await removeAbandoned(folder);
  const fingerprintOf = ({ spec, layout, packer }: PackedEntry): string => {
    const version = plugins.find(({ name }) => name === packer.plugin)?.version;
    return sha256(
      canonicalJson({
        contractVersion,
        identity,
        spec,
        layout,
        packer: [packer.name, packer.plugin, version],
        nativeCode: loadedNativeCode(),
      }),
    );
  };
  const fileOf = ({ spec, layout }: PackedEntry): string => join(folder, `${fileNameOf(spec.name)}-${sha256(layout).slice(0, 8)}.packed`);
  /** Files that are no good although their trailers may be. */
  const damaged = new Set<string>();
  let isWritable = true;
  let numRestored = 0;
  let numSaved = 0;
  let savedBytes = 0;
  return {
    restore: async (entry, restore) => {
      const file = fileOf(entry);
      let opened: PackedFile | undefined;
      try {
        opened = await openPackedFile(file);
        if (opened.fingerprint !== fingerprintOf(entry)) {
          logger.info(
            { file, layer: entry.spec.name },
            'weights were packed for another state of the checkpoint or its plugin; they are packed anew',
          );
          return undefined;
        }
        const { notes, read } = opened;
        const packed = await restore(notes, read);
        numRestored++;
        return packed;
      } catch (error) {
        if (hasCode(error, 'ENOENT')) return undefined;
        damaged.add(file);
        // A disk that lost one of them lost many, and every layer would say so.
        logger[damaged.size === 1 ? 'warn' : 'debug'](
          { file, layer: entry.spec.name, error: messageOf(error) },
          'a file of packed weights cannot be used; they are packed anew',
        );
        return undefined;
      } finally {
        await opened?.close();
      }
    },
    save: async (entry, image) => {
      if (!isWritable) return;
      const file = fileOf(entry);
      const fingerprint = fingerprintOf(entry);
      try {
        if (!damaged.has(file) && (await isKept(file, fingerprint))) return;
        await makeDirectory(folder);
        const { notes, parts } = image();
        await writePackedFile(file, { fingerprint, notes }, parts);
        numSaved++;
        savedBytes += parts.reduce((bytes, { length }) => bytes + length, 0);
      } catch (error) {
        isWritable = false;
        logger.warn(
          { file, error: messageOf(error) },
          `packed weights cannot be kept (${formatBytes(savedBytes)} were); the next start packs what is missing`,
        );
      }
    },
    counts: () => ({ directory: folder, numRestored, numSaved, savedBytes }),
  };
}

/** Whether the file says that it holds what would be written; its parts are not read. */
async function isKept(file: string, fingerprint: string): Promise<boolean> {
  try {
    const opened = await openPackedFile(file);
    await opened.close();
    return opened.fingerprint === fingerprint;
  } catch {
    return false;
  }
}

async function removeAbandoned(folder: string): Promise<void> {
  const names = await readdir(folder).catch(() => []);
  for (const name of names.filter((one) => one.endsWith('.tmp'))) {
    const file = join(folder, name);
    const modifiedMs = await stat(file)
      .then(({ mtimeMs }) => mtimeMs)
      .catch(() => Infinity);
    if (modifiedMs < Date.now() - abandonedMs) await rm(file, { force: true }).catch(() => undefined);
  }
}

function hasCode(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code;
}

/** Names come from checkpoints: what is not plain becomes an underscore, and nothing begins with a dot. */
function fileNameOf(name: string): string {
  return name
    .replace(/[^A-Za-z0-9._-]/g, '_')
    .replace(/^\.+/, '_')
    .slice(0, 100);
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
