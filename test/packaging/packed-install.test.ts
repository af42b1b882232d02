import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { repositoryRoot } from '@moe-server/test-kit';
import { expect } from 'chai';

/**
 * What a user gets: every package packed, the tarballs installed with install scripts disabled into an empty folder, and the
 * command run there with nothing but node on the PATH. The one test that may reach the npm registry.
 */
describe('the packed packages', function () {
  this.timeout(600_000);
  let folder: string;
  let tarballs: string[];

  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'moe-packed-'));
    const out = join(folder, 'tarballs');
    execFileSync(process.execPath, [join(repositoryRoot, 'tools/pack.mjs'), out], { stdio: ['ignore', 'ignore', 'inherit'] });
    tarballs = readdirSync(out).map((file) => join(out, file));
    writeFileSync(join(folder, 'package.json'), JSON.stringify({ name: 'somebody', private: true, type: 'module' }));
    execFileSync('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline', ...tarballs], {
      cwd: folder,
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    // A PATH that has node, npx and the shell that npx needs, and no compiler.
    const bin = join(folder, 'bin');
    execFileSync('mkdir', ['-p', bin]);
    symlinkSync(process.execPath, join(bin, 'node'));
    symlinkSync(join(dirname(process.execPath), 'npx'), join(bin, 'npx'));
    symlinkSync('/bin/sh', join(bin, 'sh'));
  });

  after(() => {
    rmSync(folder, { recursive: true, force: true });
  });

  const environment = (): NodeJS.ProcessEnv => ({ PATH: join(folder, 'bin'), HOME: folder });
  const command = (): string => join(folder, 'node_modules/.bin/moe-server');

  it('have no lifecycle script', () => {
    const names = [
      'moe-server',
      '@moe-server/core',
      '@moe-server/engine',
      '@moe-server/backend-b12x',
      '@moe-server/backend-cpu',
      '@moe-server/backend-cutlass',
      '@moe-server/backend-triton',
      '@moe-server/model-pocket-dictionary',
    ];
    for (const name of names) {
      const manifest = JSON.parse(readFileSync(join(folder, 'node_modules', name, 'package.json'), 'utf8')) as { scripts?: unknown };
      expect(manifest.scripts, name).to.equal(undefined);
    }
  });

  it('print their version', () => {
    const { version } = JSON.parse(readFileSync(join(repositoryRoot, 'packages/server/package.json'), 'utf8')) as { version: string };
    expect(execFileSync(command(), ['--version'], { env: environment(), encoding: 'utf8' })).to.contain(version);
  });

  it('plan the bundled model with the prebuilt kernels', () => {
    const plan = JSON.parse(execFileSync(command(), ['plan', '--json'], { env: environment(), encoding: 'utf8' })) as {
      layers: { bindings: { built: boolean }[] }[];
    };
    expect(plan.layers).to.have.length.greaterThan(8);
    for (const layer of plan.layers) expect(layer.bindings.map((binding) => binding.built)).to.include(true);
  });

  it('answer a chat over HTTP, started by npx with no compiler on the PATH', async () => {
    const server = spawn(join(folder, 'bin/npx'), ['moe-server', 'start', '--port', '0'], {
      cwd: folder,
      env: environment(),
      // npx does not pass signals on: the whole group is ended.
      detached: true,
    });
    try {
      const address = await addressOf(server);
      const response = await fetch(`${address}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ messages: [{ role: 'user', content: 'What is a volcano?' }], temperature: 0, max_tokens: 16 }),
      });
      const body = (await response.json()) as { choices: { message: { content: string } }[] };
      expect(body.choices[0]?.message.content).to.match(/^Volcano is a noun/);
    } finally {
      const closed = new Promise((resolve) => server.once('close', resolve));
      if (server.pid !== undefined) process.kill(-server.pid, 'SIGTERM');
      await closed;
    }
  });
});

/** Waits until the server has printed where it listens. */
function addressOf(server: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    let printed = '';
    const read = (chunk: Buffer): void => {
      printed += chunk.toString();
      const found = /http:\/\/127\.0\.0\.1:\d+/.exec(printed);
      if (found !== null) resolve(found[0]);
    };
    server.stdout?.on('data', read);
    server.stderr?.on('data', read);
    server.once('exit', (code) => {
      reject(new Error(`moe-server ended with status ${String(code)} before it listened:\n${printed}`));
    });
  });
}
