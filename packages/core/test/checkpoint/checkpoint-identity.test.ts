import { mkdir, readFile, rename, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'chai';
import { Checkpoint } from '../../src/checkpoint/checkpoint.js';
import { withFolder, writeConfig, writeSafetensors } from './checkpoint-writer.js';

async function identityOf(folder: string): Promise<string> {
  const checkpoint = await Checkpoint.open(folder);
  const identity = await checkpoint.identity();
  await checkpoint.close();
  return identity;
}

describe('checkpointIdentity', () => {
  const withModel = (use: (model: string, folder: string) => Promise<void>): Promise<void> =>
    withFolder(async (folder) => {
      const model = join(folder, 'model');
      await mkdir(model);
      await writeConfig(model, {});
      await writeSafetensors(join(model, 'model.safetensors'), {
        a: { dtype: 'U8', shape: [2 ** 20], bytes: new Uint8Array(2 ** 20).fill(3) },
        b: { dtype: 'F32', shape: [1], bytes: Uint8Array.of(1, 2, 3, 4) },
      });
      await utimes(join(model, 'model.safetensors'), 1000, 1000);
      await use(model, folder);
    });

  it('is the same for the same files, wherever they are', () =>
    withModel(async (model, folder) => {
      const identity = await identityOf(model);
      expect(identity).to.match(/^[0-9a-f]{64}$/);
      const moved = join(folder, 'moved');
      await rename(model, moved);
      expect(await identityOf(moved)).to.equal(identity);
    }));

  for (const [what, change] of [
    ['the time', (file: string) => utimes(file, 1000, 1001)],
    ['the last byte, not the time', (file: string) => changeByte(file, -1, 1)],
    ['every byte of a tensor, not the time', (file: string) => changeByte(file, -5, 2 ** 20)],
    ['the header, not the time', async (file: string) => replaceText(file, '"b"', '"c"')],
  ] as const) {
    it(`is another after ${what} changed`, () =>
      withModel(async (model) => {
        const identity = await identityOf(model);
        await change(join(model, 'model.safetensors'));
        expect(await identityOf(model)).not.to.equal(identity);
      }));
  }
});

async function changeByte(file: string, end: number, count: number): Promise<void> {
  const bytes = await readFile(file);
  const last = bytes.length + end;
  for (let i = last; i > last - count; i--) bytes[i]! ^= 1;
  await writeFile(file, bytes);
  await utimes(file, 1000, 1000);
}

async function replaceText(file: string, from: string, to: string): Promise<void> {
  const bytes = await readFile(file);
  bytes.write(to, bytes.indexOf(from));
  await writeFile(file, bytes);
  await utimes(file, 1000, 1000);
}
