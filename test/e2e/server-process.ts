import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { cpuDeviceProblem } from '@moe-server/engine';
import { repositoryRoot } from '@moe-server/test-kit';
import { loadPlugins } from 'moe-server';

const bin = join(repositoryRoot, 'packages/server/dist/src/bin.js');

/** Why models cannot run natively in this checkout, undefined when they can. */
export async function nativeProblem(): Promise<string | undefined> {
  const problem = cpuDeviceProblem();
  if (problem !== undefined) return problem;
  const { host } = await loadPlugins({ plugins: false });
  const cpu = host.moeBackends.find(({ name }) => name === 'cpu');
  if (cpu === undefined) return 'the cpu backend is not there';
  const missing = cpu.rules.map(({ id }) => cpu.missing(id));
  return missing.includes(undefined) ? undefined : missing[0];
}

/** A `moe-server start` that runs, as a user would run it. */
export interface RunningServer {
  readonly url: string;
  readonly process: ChildProcess;
  /** Everything it printed so far. */
  readonly output: () => string;
  /** The exit status, once it has ended. */
  readonly exited: Promise<number | null>;
  /** Process id of its engine. */
  readonly enginePid: () => number | undefined;
  readonly stop: () => Promise<number | null>;
}

/** Starts a server on a free port and waits until it serves. Rejects with what it printed when it ends before. */
export async function startServer(...flags: string[]): Promise<RunningServer> {
  // What somebody measured on this machine must not choose the kernels of a test.
  const fixed = ['--port', '0', '--threads', '2', '--no-calibration'];
  // What a test finds out about kernels is not for the user's own cache.
  const env = { MOE_CACHE_DIR: join(tmpdir(), 'moe-server-tests'), ...process.env };
  const child = spawn(process.execPath, [bin, 'start', ...fixed, ...flags], { stdio: ['ignore', 'pipe', 'pipe'], env });
  let output = '';
  const exited = new Promise<number | null>((resolve) => {
    child.once('exit', (status) => {
      resolve(status);
    });
  });
  const url = await new Promise<string>((resolve, reject) => {
    const read = (chunk: Buffer): void => {
      output += chunk.toString();
      const address = /serving +(http:\/\/[\d.]+:\d+) /.exec(output)?.[1];
      // The line to try is the last thing it prints.
      if (address !== undefined && output.includes('Try it:')) resolve(address);
    };
    child.stdout.on('data', read);
    child.stderr.on('data', read);
    void exited.then((status) => {
      reject(new Error(`moe-server start ended with ${String(status)}:\n${output}`));
    });
  });
  return {
    url,
    process: child,
    output: () => output,
    exited,
    enginePid: () => childrenOf(child.pid)[0],
    stop: () => {
      child.kill('SIGTERM');
      return exited;
    },
  };
}

/** Runs a command to its end. */
export async function moeServer(
  ...args: string[]
): Promise<{ readonly status: number | null; readonly out: string; readonly err: string }> {
  const child = spawn(process.execPath, [bin, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  let out = '';
  let err = '';
  child.stdout.on('data', (chunk: Buffer) => {
    out += chunk.toString();
  });
  child.stderr.on('data', (chunk: Buffer) => {
    err += chunk.toString();
  });
  const status = await new Promise<number | null>((resolve) => child.once('close', resolve));
  return { status, out, err };
}

export function post(url: string, body: unknown, signal?: AbortSignal): Promise<Response> {
  const init = { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) };
  return fetch(url, { ...init, signal: signal ?? null });
}

/** Reads server-sent events one by one, each as soon as it is complete. */
export async function* events(response: Response): AsyncGenerator<string, void, undefined> {
  const decoder = new TextDecoder();
  let rest = '';
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
    rest += decoder.decode(chunk, { stream: true });
    const frames = rest.split('\n\n');
    rest = frames.pop() ?? '';
    for (const frame of frames) if (frame.startsWith('data: ')) yield frame.slice('data: '.length);
  }
}

/** Asks again until the answer is yes; the test's own timeout ends it. */
export async function eventually(condition: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 30_000;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`still waiting for ${condition.toString()}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** The value of a metric without histogram labels, NaN when it is not there. */
export async function metric(url: string, name: string, labels = ''): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  const line = text.split('\n').find((candidate) => candidate.startsWith(`${name}{`) && candidate.includes(labels));
  return Number(line?.split(' ').at(-1));
}

/** Direct children, as Linux lists them. */
function childrenOf(pid: number | undefined): number[] {
  const text = readFileSync(`/proc/${String(pid)}/task/${String(pid)}/children`, 'utf8').trim();
  return text === '' ? [] : text.split(' ').map(Number);
}
