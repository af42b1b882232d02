import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pocketDictionary, repositoryRoot } from '@moe-server/test-kit';
import { count, parseArguments } from './arguments.js';
import { median } from './figures.js';
import { describeMachine } from './machine.js';

const help = `Measures "moe-server start", from the command to the first token of a first request.

  npm run bench -- start [options]

  --model DIR                the bundled Pocket Dictionary
  --runs N                   5 counted starts, after one that warms up the disk's cache and verifies kernels; the median counts
  --packed-weights-cache     in turn with starts that read packed weights from disk`;

/** What one start took. */
interface StartFigures {
  /** From the command until it says that it serves, and until the first token, in seconds. */
  readonly servingSeconds: number;
  readonly firstTokenSeconds: number;
  /** The most memory of the engine's process. */
  readonly peakBytes: number;
}

interface Variant {
  readonly name: string;
  readonly flags: readonly string[];
}

/** `npm run bench -- start`: starts servers as a user would, asks each for one token, and prints what that took. */
export async function startBench(args: string[]): Promise<void> {
  const { values } = parseArguments({
    args,
    options: {
      model: { type: 'string', default: pocketDictionary },
      runs: { type: 'string', default: '5' },
      'packed-weights-cache': { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(`${help}\n`);
    return;
  }
  const numRuns = count('runs', values.runs);
  const { processor, processors, node, commit = 'unknown' } = describeMachine();
  process.stdout.write(`${processor}, ${String(processors)} processors, Node ${node}, commit ${commit}, ${values.model}\n\n`);
  const variants: Variant[] = [{ name: 'from the checkpoint', flags: [] }];
  if (values['packed-weights-cache']) variants.push({ name: 'from packed weights', flags: ['--packed-weights-cache'] });
  const cache = await mkdtemp(join(tmpdir(), 'moe-start-'));
  try {
    const runs = variants.map((): StartFigures[] => []);
    for (let run = 0; run <= numRuns; run++) {
      for (const [i, { flags }] of variants.entries()) {
        const figures = await measureStart(['--model', values.model, '--cache-dir', cache, ...flags]);
        if (run > 0) runs[i]?.push(figures);
      }
    }
    for (const [i, { name }] of variants.entries()) process.stdout.write(`${name.padEnd(20)} ${summaryOf(runs[i] ?? [])}\n`);
  } finally {
    await rm(cache, { recursive: true });
  }
}

function summaryOf(runs: readonly StartFigures[]): string {
  const serving = runs.map(({ servingSeconds }) => servingSeconds);
  const first = runs.map(({ firstTokenSeconds }) => firstTokenSeconds);
  const peak = Math.max(...runs.map(({ peakBytes }) => peakBytes)) / 1e6;
  return (
    `serves after ${median(serving).toFixed(2)} s, first token after ${median(first).toFixed(2)} s ` +
    `(${Math.min(...first).toFixed(2)} to ${Math.max(...first).toFixed(2)}), engine ${peak.toFixed(0)} MB at most`
  );
}

async function measureStart(flags: readonly string[]): Promise<StartFigures> {
  const began = performance.now();
  const bin = join(repositoryRoot, 'packages/server/dist/src/bin.js');
  const child = spawn(process.execPath, [bin, 'start', '--port', '0', '--log-level', 'warn', ...flags], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = new Promise<void>((resolve) => {
    child.once('exit', () => {
      resolve();
    });
  });
  try {
    const url = await new Promise<string>((resolve, reject) => {
      let output = '';
      child.stdout.on('data', (chunk: Buffer) => {
        output += chunk.toString();
        const address = /serving +(http:\/\/[\d.]+:\d+) /.exec(output)?.[1];
        if (address !== undefined) resolve(address);
      });
      void exited.then(() => {
        reject(new Error(`moe-server start ended before it served:\n${output}`));
      });
    });
    const servingSeconds = (performance.now() - began) / 1e3;
    const response = await fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ prompt: 'A lighthouse is', max_tokens: 1, ignore_eos: true, stream: true }),
    });
    const reader = response.body?.getReader() as ReadableStreamDefaultReader<Uint8Array> | undefined;
    const first = await reader?.read();
    const firstTokenSeconds = (performance.now() - began) / 1e3;
    const text = new TextDecoder().decode(first?.value);
    if (!response.ok || !text.startsWith('data: {')) throw new Error(`The server answered ${String(response.status)}: ${text}`);
    return { servingSeconds, firstTokenSeconds, peakBytes: await peakBytesOfChild(child.pid) };
  } finally {
    child.kill('SIGTERM');
    await exited;
  }
}

/** High-water mark of the resident set of a process's only child, as Linux keeps it. */
async function peakBytesOfChild(pid: number | undefined): Promise<number> {
  const [engine = ''] = (await readFile(`/proc/${String(pid)}/task/${String(pid)}/children`, 'utf8')).split(' ');
  const peak = /^VmHWM:\s*(\d+) kB$/m.exec(await readFile(`/proc/${engine}/status`, 'utf8'))?.[1];
  return Number(peak) * 1024;
}
