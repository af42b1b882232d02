import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';

/** What results must say about where they were measured. */
export interface Machine {
  readonly processor: string;
  readonly processors: number;
  readonly memoryGiB: number;
  readonly kernel: string;
  readonly node: string;
  readonly commit: string | undefined;
  readonly date: string;
}

export function describeMachine(): Machine {
  return {
    processor: cpus()[0]?.model ?? 'unknown',
    processors: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    kernel: release(),
    node: process.version,
    commit: currentCommit(),
    date: new Date().toISOString(),
  };
}

function currentCommit(): string | undefined {
  try {
    return execFileSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  } catch {
    return undefined;
  }
}

/** The most memory that a process has held. Linux only; undefined elsewhere. */
export function peakBytesOf(pid: number): number | undefined {
  try {
    const kilobytes = /^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${String(pid)}/status`, 'utf8'))?.[1];
    return kilobytes === undefined ? undefined : 1024 * Number(kilobytes);
  } catch {
    return undefined;
  }
}

/** Processor time used so far, in seconds: by the whole machine, and by the given processes with their threads. */
interface CpuTimes {
  readonly machine: number;
  readonly own: number;
}

const ticksPerSecond = 100;

/** Linux only; undefined elsewhere. */
function cpuTimes(pids: readonly number[]): CpuTimes | undefined {
  try {
    const fields = (readFileSync('/proc/stat', 'utf8').split('\n')[0] ?? '').trim().split(/\s+/).slice(1).map(Number);
    // user, nice, system, irq, softirq, steal: everything but idle and waiting.
    const machine = [0, 1, 2, 5, 6, 7].reduce((sum, i) => sum + (fields[i] ?? 0), 0);
    let own = 0;
    for (const pid of pids) {
      // Fields 14 and 15, counted after the name, which may contain spaces and ends with the last parenthesis.
      const stat =
        readFileSync(`/proc/${String(pid)}/stat`, 'utf8')
          .split(')')
          .at(-1)
          ?.trim()
          .split(' ') ?? [];
      own += Number(stat[11]) + Number(stat[12]);
    }
    return { machine: machine / ticksPerSecond, own: own / ticksPerSecond };
  } catch {
    return undefined;
  }
}

/** Measures how many processors others used during `body`, on average: a figure taken beside other work says little. */
export async function withForeignLoad<T>(
  pids: readonly number[],
  body: () => Promise<T>,
): Promise<{ readonly value: T; readonly foreign: number | undefined }> {
  const before = cpuTimes(pids);
  const startedAt = performance.now();
  const value = await body();
  const seconds = (performance.now() - startedAt) / 1000;
  const after = cpuTimes(pids);
  if (before === undefined || after === undefined) return { value, foreign: undefined };
  return { value, foreign: Math.max(0, (after.machine - before.machine - (after.own - before.own)) / seconds) };
}

/** A run, or that it does not count. */
export type QuietRun<T> =
  { readonly counts: true; readonly value: T; readonly foreign: number | undefined } | { readonly counts: false; readonly foreign: number };

/**
 * Keeps other programs out of the figures: waits until they leave the processors alone, and throws away runs that they disturbed. Both take from
 * one budget of seconds; when it is spent every run counts, and the figure says what others used.
 */
export class QuietGuard {
  #secondsLeft: number;

  constructor(budgetSeconds: number) {
    this.#secondsLeft = budgetSeconds;
  }

  /** Resolves when others are quiet, or the budget is spent. @param pids - whose work is our own. */
  async wait(pids: readonly number[]): Promise<void> {
    while (this.#secondsLeft > 0) {
      const { foreign } = await withForeignLoad(pids, () => new Promise((resolve) => setTimeout(resolve, pollMs)));
      if (foreign === undefined || foreign <= quietProcessors) return;
      this.#secondsLeft -= pollMs / 1000;
    }
  }

  /** Waits, then runs `body`. */
  async run<T>(pids: readonly number[], body: () => Promise<T>): Promise<QuietRun<T>> {
    await this.wait(pids);
    const startedAt = performance.now();
    const { value, foreign } = await withForeignLoad(pids, body);
    const seconds = (performance.now() - startedAt) / 1000;
    // Times are counted in hundredths of a second: in a short run a tick or two mean nothing.
    if (this.#secondsLeft <= 0 || foreign === undefined || foreign <= Math.max(quietProcessors, 2.5 / ticksPerSecond / seconds))
      return { counts: true, value, foreign };
    this.#secondsLeft -= seconds;
    return { counts: false, foreign };
  }
}

const pollMs = 500;
/** Half of it is what an idle system uses. */
const quietProcessors = 0.1;
