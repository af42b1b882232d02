import { existsSync } from 'node:fs';
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'chai';
import { messageOf } from '../src/errors.js';
import { makeDirectory } from '../src/make-directory.js';

describe('makeDirectory', () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'make-directory-'));
  });
  afterEach(async () => {
    await rm(folder, { recursive: true });
  });

  it('makes all parents, and takes what is there, also when asked twice at once', async () => {
    const path = join(folder, 'a/b/c');
    await Promise.all([makeDirectory(path), makeDirectory(path)]);
    await makeDirectory(path);
    expect((await stat(path)).isDirectory()).to.equal(true);
  });

  it('refuses a path through a file', async () => {
    await writeFile(join(folder, 'file'), '');
    expect(await refusal(join(folder, 'file'))).to.contain('EEXIST');
    expect(await refusal(join(folder, 'file/a/b'))).to.contain('ENOTDIR');
  });

  it('refuses a folder in /proc, where mkdir of Node 20 does not end', async function () {
    if (!existsSync('/proc/self')) this.skip();
    expect(await refusal('/proc/moe-server/a/b')).to.match(/^ENOENT: .*\/proc\/moe-server'$/);
  });
});

async function refusal(path: string): Promise<string> {
  return await makeDirectory(path).then(
    () => '',
    (error: unknown) => messageOf(error),
  );
}
