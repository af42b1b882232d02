import { readFileSync } from 'node:fs';
import { freemem } from 'node:os';
import { MoeError } from '@moe-server/core';

/**
 * Memory that this process may still take: what the machine has available, or what its cgroup leaves, whichever is less. Pages of files
 * that were read count as available, as the system gives them back.
 *
 * @param folder - of the process's cgroup (version 2); inside a container it is the root.
 */
export function availableMemoryBytes(folder = '/sys/fs/cgroup'): number {
  const available = freemem();
  const limit = numberIn(`${folder}/memory.max`);
  const used = numberIn(`${folder}/memory.current`);
  if (limit === undefined || used === undefined) return available;
  const cachedFiles = /^inactive_file (\d+)$/m.exec(textOf(`${folder}/memory.stat`) ?? '')?.[1];
  return Math.max(0, Math.min(available, limit - used + Number(cachedFiles ?? 0)));
}

/** MOE_DEVICE_MEMORY. @param availableBytes - undefined where the system said no without a number. */
export function outOfMemory(label: string, byteLength: number, availableBytes: number | undefined): MoeError {
  const left = availableBytes === undefined ? 'the system refuses' : `${String(availableBytes)} bytes are left`;
  return new MoeError('MOE_DEVICE_MEMORY', `There is no memory for ${label}: ${String(byteLength)} bytes wanted, ${left}.`, {
    label,
    byteLength,
    availableBytes,
  });
}

/** Undefined where there is no such file, and for `max`, which means no limit. */
function numberIn(file: string): number | undefined {
  const text = textOf(file)?.trim();
  return text !== undefined && /^\d+$/.test(text) ? Number(text) : undefined;
}

function textOf(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
}
