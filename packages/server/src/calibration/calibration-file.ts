import { readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { makeDirectory, messageOf } from '@moe-server/core';
import type { DeviceInfo, Evidence, Logger, MeasuredClass, PluginHost, Quarantine } from '@moe-server/core';
import { z } from 'zod';
import { describeEnvironment, fingerprintOf } from './environment.js';
import type { CalibrationEnvironment } from './environment.js';

/** What calibrating found out in one environment. */
export interface CalibrationResults {
  readonly classes: readonly MeasuredClass[];
  readonly quarantined: readonly CalibrationQuarantine[];
}

/** A kernel that crashed, hung or failed; only ever for one class of layers. */
export type CalibrationQuarantine = Quarantine & { readonly rule: string; readonly layerClass: string };

const fileVersion = 1;

const content = z.object({
  version: z.literal(fileVersion),
  environment: z.record(z.string(), z.unknown()),
  classes: z.array(
    z.object({
      layerClass: z.string(),
      measuredAt: z.iso.datetime(),
      times: z.array(
        z.object({
          backend: z.string(),
          rule: z.string(),
          numTokens: z.int().positive(),
          medianUs: z.number().positive(),
          spreadUs: z.number().nonnegative(),
          isEstimate: z.literal(true).optional(),
        }),
      ),
    }),
  ),
  quarantined: z.array(
    z.object({ backend: z.string(), rule: z.string(), kind: z.enum(['moe', 'linear']), layerClass: z.string(), reason: z.string() }),
  ),
});

/** One file per environment, so that two builds or thread counts keep theirs side by side. */
export function calibrationFile(cacheDirectory: string, environment: CalibrationEnvironment): string {
  return join(cacheDirectory, 'calibration', `${fingerprintOf(environment)}.json`);
}

/**
 * What was measured in this environment, in the form that a plan takes; undefined when nothing was. A file that is damaged is ignored with one
 * warning.
 */
export async function readEvidence(
  cacheDirectory: string,
  environment: CalibrationEnvironment,
  log: Pick<Logger, 'warn'>,
): Promise<Evidence | undefined> {
  const results = await readResults(calibrationFile(cacheDirectory, environment), log);
  if (results === undefined) return undefined;
  return { quarantined: results.quarantined, measured: { environment: fingerprintOf(environment), classes: results.classes } };
}

/** {@link readEvidence} as settings say it; empty where they say no. */
export async function readCalibration(
  { calibration = false, cacheDir }: { readonly calibration?: boolean; readonly cacheDir?: string | undefined },
  host: PluginHost,
  device: DeviceInfo,
  log: Pick<Logger, 'warn'>,
): Promise<Evidence> {
  if (!calibration || cacheDir === undefined) return {};
  return (await readEvidence(cacheDir, describeEnvironment(host, device), log)) ?? {};
}

/**
 * Keeps results beside those of other layer classes; of the same class the new ones stay. A reader sees the old file or the new one, never a
 * part.
 *
 * @returns the file.
 * @throws {Error} of the file system.
 */
export async function writeResults(
  cacheDirectory: string,
  environment: CalibrationEnvironment,
  results: CalibrationResults,
  log: Pick<Logger, 'warn'>,
): Promise<string> {
  const file = calibrationFile(cacheDirectory, environment);
  const before = (await readResults(file, log)) ?? { classes: [], quarantined: [] };
  const renewed = new Set([...results.classes, ...results.quarantined].map(({ layerClass }) => layerClass));
  const kept = <T extends { readonly layerClass: string }>(entries: readonly T[]): T[] =>
    entries.filter(({ layerClass }) => !renewed.has(layerClass));
  const merged = {
    version: fileVersion,
    environment,
    classes: [...kept(before.classes), ...results.classes],
    quarantined: [...kept(before.quarantined), ...results.quarantined],
  };
  await makeDirectory(join(cacheDirectory, 'calibration'));
  const draft = `${file}.${String(process.pid)}.tmp`;
  try {
    await writeFile(draft, `${JSON.stringify(merged, undefined, 1)}\n`);
    await rename(draft, file);
  } catch (thrown) {
    await rm(draft, { force: true });
    throw thrown;
  }
  return file;
}

async function readResults(file: string, log: Pick<Logger, 'warn'>): Promise<CalibrationResults | undefined> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (thrown) {
    const isAbsent = thrown instanceof Error && 'code' in thrown && thrown.code === 'ENOENT';
    if (!isAbsent) log.warn({ file, error: messageOf(thrown) }, `The calibration in ${file} cannot be read; it is ignored`);
    return undefined;
  }
  try {
    const { classes, quarantined } = content.parse(JSON.parse(text));
    return {
      classes: classes.map((one) => ({
        ...one,
        times: one.times.map(({ isEstimate, ...time }) => ({ ...time, ...(isEstimate === true ? { isEstimate } : {}) })),
      })),
      quarantined,
    };
  } catch (thrown) {
    const message = `The calibration in ${file} is damaged or of another release; it is ignored. "moe-server calibrate" replaces it`;
    log.warn({ file, error: messageOf(thrown) }, message);
    return undefined;
  }
}
