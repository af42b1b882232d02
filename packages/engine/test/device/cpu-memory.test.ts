import { expect } from 'chai';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { freemem, tmpdir } from 'node:os';
import { join } from 'node:path';
import { availableMemoryBytes } from '../../src/device/cpu-memory.js';

describe('availableMemoryBytes', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'cgroup-'));
  });
  afterEach(() => {
    rmSync(folder, { recursive: true });
  });
  const write = (files: Readonly<Record<string, string>>): void => {
    for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  };

  it('is what the cgroup leaves, where pages of files can be given back', () => {
    write({
      'memory.max': '5000000\n',
      'memory.current': '3000000\n',
      'memory.stat': 'anon 900000\ninactive_file 1500000\nactive_file 7\n',
    });
    expect(availableMemoryBytes(folder)).to.equal(3_500_000);
  });

  it('is never negative', () => {
    write({ 'memory.max': '1000\n', 'memory.current': '3000\n' });
    expect(availableMemoryBytes(folder)).to.equal(0);
  });

  it('is what the machine has where the cgroup has no limit, or where there is none', () => {
    write({ 'memory.max': 'max\n', 'memory.current': '3000\n' });
    for (const place of [folder, join(folder, 'missing')]) {
      expect(availableMemoryBytes(place))
        .to.be.greaterThan(0)
        .and.to.be.closeTo(freemem(), freemem() / 2);
    }
  });
});
