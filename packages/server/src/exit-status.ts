import { isMoeError } from '@moe-server/core';
import type { ErrorFamily } from '@moe-server/core';

/** Exit statuses of every command; docs and scripts rely on them. */
export const exitStatus = {
  ok: 0,
  fault: 1,
  unserved: 2,
  checkpoint: 3,
  plugin: 4,
  engineDied: 5,
  usage: 64,
} as const;

const byFamily: Partial<Record<ErrorFamily, number>> = {
  unsupported: exitStatus.unserved,
  checkpoint: exitStatus.checkpoint,
  plugin: exitStatus.plugin,
  usage: exitStatus.usage,
};

/** The status that a command ends with when this was thrown. */
export function exitStatusOf(thrown: unknown): number {
  if (!isMoeError(thrown)) return exitStatus.fault;
  if (thrown.code === 'MOE_DEVICE_LOST') return exitStatus.engineDied;
  return byFamily[thrown.family] ?? exitStatus.fault;
}
