import { spawn } from 'node:child_process';

/** What a process took, from spawn to exit. */
export interface MeasuredProcess {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
  readonly seconds: number;
  /** Processor time of all its threads: what it takes of a machine that others use too. */
  readonly processorSeconds: number;
  /** The most memory it held at once. */
  readonly peakBytes: number;
}

const marker = 'moe-usage';
/** Runs in the process itself: nobody else is told its peak. */
const reporter = `process.on('exit', () => {
  const { maxRSS, userCPUTime, systemCPUTime } = process.resourceUsage();
  process.stderr.write(['\\n${marker}', maxRSS, userCPUTime + systemCPUTime].join(' ') + '\\n');
});`;

/** Runs a script in a fresh Node process and measures time and peak memory of all of it, start-up and imports included. */
export async function measureProcess(script: string, args: readonly string[]): Promise<MeasuredProcess> {
  const begin = performance.now();
  const preload = `data:text/javascript,${encodeURIComponent(reporter)}`;
  const child = spawn(process.execPath, ['--import', preload, script, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  const stdout: Buffer[] = [];
  const stderr: Buffer[] = [];
  child.stdout.on('data', (chunk: Buffer) => stdout.push(chunk));
  child.stderr.on('data', (chunk: Buffer) => stderr.push(chunk));
  const status = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  const text = Buffer.concat(stderr).toString();
  const usage = new RegExp(`\\n${marker} (\\d+) (\\d+)\\n`).exec(text);
  return {
    status,
    stdout: Buffer.concat(stdout).toString(),
    stderr: text.replace(usage?.[0] ?? '', ''),
    seconds: (performance.now() - begin) / 1000,
    processorSeconds: Number(usage?.[2]) / 1e6,
    peakBytes: Number(usage?.[1]) * 1024,
  };
}
