import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { measureBandwidth } from '@moe-server/engine';

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

/** Read bandwidth in GB/s: random pieces of 1.5 MiB of a GiB, as the experts of a token are read. */
export function readBandwidth(numThreads: number): Promise<number> {
  return measureBandwidth({ numThreads, totalBytes: 2 ** 30, pieceBytes: 1.5 * 2 ** 20 });
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

/** Waits for other programs, no longer than the budget that all calls share. */
export class QuietWaiter {
  #secondsLeft: number;

  constructor(budgetSeconds: number) {
    this.#secondsLeft = budgetSeconds;
  }

  /** Resolves when others use less than a tenth of a processor, or the budget is spent. */
  async wait(pids: readonly number[]): Promise<void> {
    while (this.#secondsLeft > 0) {
      const { foreign } = await withForeignLoad(pids, () => new Promise((resolve) => setTimeout(resolve, pollMs)));
      if (foreign === undefined || foreign <= quietProcessors) return;
      this.#secondsLeft -= pollMs / 1000;
    }
  }
}

const pollMs = 500;
const quietProcessors = 0.1;
