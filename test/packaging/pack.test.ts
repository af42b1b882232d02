import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { repositoryRoot } from '@moe-server/test-kit';
import { expect } from 'chai';

describe('tools/pack.mjs', () => {
  it('refuses a platform that nothing builds for, and packs nothing', () => {
    const folder = mkdtempSync(join(tmpdir(), 'moe-pack-'));
    try {
      const { status, stderr } = spawnSync(process.execPath, [join(repositoryRoot, 'tools/pack.mjs'), folder, 'linux-riscv64'], {
        encoding: 'utf8',
      });
      expect(status).to.equal(64);
      expect(stderr).to.match(/^no build for linux-riscv64: this machine's is \S+, others are linux-arm64\nusage: /u);
      expect(readdirSync(folder)).to.deep.equal([]);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
});
