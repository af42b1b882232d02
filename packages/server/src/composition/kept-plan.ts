import { readFileSync, writeFileSync } from 'node:fs';
import { messageOf, MoeError, readPlanFile, writePlanFile } from '@moe-server/core';
import type { Plan, PlanFile, PlanPlugin } from '@moe-server/core';

/**
 * Reads a plan that {@link keepPlan} wrote, or that `plan --json` printed.
 *
 * @param flag - what named the file, for messages.
 * @throws {MoeError} MOE_PLAN_FILE when it cannot be read or is none.
 */
export function openPlanFile(file: string, flag: '--plan' | '--diff'): PlanFile {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    throw new MoeError('MOE_PLAN_FILE', `${flag} ${file}: ${messageOf(cause)}`, { file }, { cause });
  }
  return readPlanFile(text, file);
}

/** Writes `plan.lock.json`. @throws {MoeError} MOE_USAGE when the file cannot be written. */
export function keepPlan(file: string, plan: Plan, plugins: readonly PlanPlugin[]): void {
  try {
    writeFileSync(file, writePlanFile(plan, plugins));
  } catch (cause) {
    throw new MoeError('MOE_USAGE', `--out ${file}: ${messageOf(cause)}`, { file }, { cause });
  }
}
