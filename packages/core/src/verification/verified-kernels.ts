import { readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf } from '../errors.js';
import { makeDirectory } from '../make-directory.js';
import type { Logger } from '../tokens.js';

/** What is remembered of a kernel that computed right. */
export interface VerifiedKernel {
  readonly backend: string;
  readonly rule: string;
  /** The layer that it was tried on. */
  readonly layer: string;
  readonly nmse: number;
  readonly allowedNmse: number;
  /** ISO 8601 date and time. */
  readonly verifiedAt: string;
}

/** Kernels that were verified in earlier starts too, by fingerprint. */
export interface VerifiedKernels {
  readonly has: (fingerprint: string) => boolean;
  readonly add: (fingerprint: string, kernel: VerifiedKernel) => void;
  /** Writes what was added, together with what others wrote meanwhile. Never throws: without the file the next start verifies again. */
  readonly save: () => Promise<void>;
}

const fileName = 'verified-kernels.json';
const fileVersion = 1;
/** The newest are kept. A model has a handful. */
const maxKernels = 2000;

type Entries = Map<string, VerifiedKernel>;

/**
 * Opens the file in `directory`. One that is missing is empty; one that cannot be read or is no such file is ignored with a warning and replaced.
 */
export async function openVerifiedKernels(directory: string, logger: Logger): Promise<VerifiedKernels> {
  const file = join(directory, fileName);
  const warn = (message: string, error: unknown): void => {
    logger.warn({ file, error: messageOf(error) }, message);
  };
  const known = await readEntries(file, (error) => {
    warn('the file of verified kernels cannot be used; kernels are verified again', error);
  });
  const added: Entries = new Map();
  return {
    has: (fingerprint) => known.has(fingerprint) || added.has(fingerprint),
    add: (fingerprint, kernel) => {
      added.set(fingerprint, kernel);
    },
    save: async () => {
      if (added.size === 0) return;
      const draft = `${file}.${process.pid}.tmp`;
      try {
        await makeDirectory(directory);
        const present = await readEntries(file, () => undefined);
        const newest = [...present, ...added].slice(-maxKernels);
        await writeFile(draft, `${JSON.stringify({ version: fileVersion, kernels: Object.fromEntries(newest) }, undefined, 1)}\n`);
        // A reader sees the old file or the new one, never half of it.
        await rename(draft, file);
        for (const [fingerprint, kernel] of added) known.set(fingerprint, kernel);
        added.clear();
      } catch (error) {
        warn('verified kernels cannot be remembered; the next start verifies them again', error);
        await rm(draft, { force: true }).catch(() => undefined);
      }
    },
  };
}

async function readEntries(file: string, onFault: (error: unknown) => void): Promise<Entries> {
  try {
    const content = JSON.parse(await readFile(file, 'utf8')) as { readonly version?: unknown; readonly kernels?: unknown } | null;
    if (content?.version !== fileVersion || typeof content.kernels !== 'object' || content.kernels === null)
      throw new TypeError(`expected {"version": ${fileVersion}, "kernels": {…}}`);
    return new Map(Object.entries(content.kernels as Record<string, VerifiedKernel>));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') onFault(error);
    return new Map();
  }
}

/** Remembers for this process only. */
export function verifiedInMemory(): VerifiedKernels {
  const added = new Set<string>();
  return {
    has: (fingerprint) => added.has(fingerprint),
    add: (fingerprint) => {
      added.add(fingerprint);
    },
    save: () => Promise.resolve(),
  };
}
