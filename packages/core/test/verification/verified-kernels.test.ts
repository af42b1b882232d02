import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'chai';
import { silentLogger, type Logger } from '../../src/tokens.js';
import { openVerifiedKernels } from '../../src/verification/verified-kernels.js';

const kernel = { backend: 'b', rule: 'r', layer: 'l', nmse: 1e-14, allowedNmse: 1e-9, verifiedAt: '2026-01-01T00:00:00.000Z' };

describe('openVerifiedKernels', () => {
  let folder: string;
  let warnings: string[];
  let logger: Logger;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'moe-verified-'));
    warnings = [];
    logger = { ...silentLogger, warn: (_fields, message) => void warnings.push(message) };
  });
  afterEach(() => {
    rmSync(folder, { recursive: true });
  });

  it('remembers across openings, in a folder that it makes', async () => {
    const directory = join(folder, 'new', 'folder');
    const first = await openVerifiedKernels(directory, logger);
    expect(first.has('f')).to.equal(false);
    first.add('f', kernel);
    await first.save();
    expect((await openVerifiedKernels(directory, logger)).has('f')).to.equal(true);
    expect(warnings).to.deep.equal([]);
    expect(readdirSync(directory)).to.deep.equal(['verified-kernels.json']);
  });

  it('keeps what another process wrote meanwhile', async () => {
    const [mine, other] = [await openVerifiedKernels(folder, logger), await openVerifiedKernels(folder, logger)];
    mine.add('mine', kernel);
    other.add('other', kernel);
    await other.save();
    await mine.save();
    const later = await openVerifiedKernels(folder, logger);
    expect([later.has('mine'), later.has('other')]).to.deep.equal([true, true]);
  });

  for (const [what, content] of [
    ['half a file', '{"version": 1, "kernels": {'],
    ['another version', '{"version": 99, "kernels": {"f": {}}}'],
    ['something else', 'null'],
  ] as const) {
    it(`ignores ${what} with one warning, and replaces it`, async () => {
      writeFileSync(join(folder, 'verified-kernels.json'), content);
      const opened = await openVerifiedKernels(folder, logger);
      expect(opened.has('f')).to.equal(false);
      opened.add('g', kernel);
      await opened.save();
      expect(warnings).to.have.length(1);
      expect(warnings[0]).to.contain('verified again');
      expect((await openVerifiedKernels(folder, logger)).has('g')).to.equal(true);
      expect(warnings).to.have.length(1);
    });
  }

  it('goes on with one warning where it cannot write', async () => {
    const file = join(folder, 'a file');
    writeFileSync(file, '');
    const opened = await openVerifiedKernels(join(file, 'below'), silentLogger);
    opened.add('f', kernel);
    const failing = await openVerifiedKernels(join(file, 'below'), logger);
    warnings.length = 0;
    failing.add('f', kernel);
    await failing.save();
    expect(warnings).to.have.length(1);
    expect(failing.has('f')).to.equal(true);
  });

  it('keeps the newest two thousand', async () => {
    const opened = await openVerifiedKernels(folder, logger);
    for (let i = 0; i < 2001; i++) opened.add(`f${i}`, kernel);
    await opened.save();
    const { kernels } = JSON.parse(readFileSync(join(folder, 'verified-kernels.json'), 'utf8')) as { kernels: Record<string, unknown> };
    expect(Object.keys(kernels)).to.have.length(2000);
    expect(kernels).not.to.have.property('f0');
  });
});
