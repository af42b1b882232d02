import { spawnSync } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';

const root = fileURLToPath(new URL('../../../', import.meta.url));

function isInstalled(program: string): boolean {
  return (process.env.PATH ?? '').split(delimiter).some((folder) => {
    try {
      accessSync(join(folder, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** Debian packages that `npm run test:arm64` needs and this machine lacks. */
function missingPackages(): string[] {
  return [
    ...(isInstalled('aarch64-linux-gnu-g++') ? [] : ['g++-aarch64-linux-gnu']),
    ...(isInstalled('qemu-aarch64-static') || isInstalled('qemu-aarch64') ? [] : ['qemu-user-static']),
  ];
}

describe('kernels on 64-bit ARM, emulated', () => {
  const missing = missingPackages();
  const title = 'compute what the reference computes, with and without the extensions for whole numbers';

  if (missing.length > 0) {
    it.skip(`${title} (not installed: ${missing.join(', ')})`);
    return;
  }

  it(title, function () {
    this.timeout(900_000);
    const { status, stdout, stderr } = spawnSync('npm', ['run', '--silent', 'test:arm64'], { cwd: root, encoding: 'utf8' });
    expect(status, stdout + stderr).to.equal(0);
    const tested = [...stdout.matchAll(/tested: (.*)/gu)].map(([, name]) => name);
    // The engine's operators, then the backend's kernels on three processors.
    expect(tested).to.deep.equal(['neon', 'neon with i8mm', 'neon with dotprod', 'neon'].flatMap((name) => ['portable', name]));
  });
});
