import { readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'chai';
import { openPackedFile, writePackedFile } from '../../src/packed-cache/packed-file.js';
import { withFolder } from '../checkpoint/checkpoint-writer.js';

/** More than one block of 4 MiB, and lengths that are no multiple of anything. */
const parts = [new Uint8Array(9 * 2 ** 20 + 5).map((_, i) => i * 31), new Uint8Array(0), Uint8Array.of(1, 2, 3)];
const content = { fingerprint: 'f', notes: [{ scale: 0.1 }] };

async function contentOf(file: string): Promise<readonly Uint8Array[]> {
  const opened = await openPackedFile(file);
  try {
    const places = opened.lengths.map((length) => new Uint8Array(length));
    await opened.read(places);
    return places;
  } finally {
    await opened.close();
  }
}

async function faultOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    return String(error);
  }
  return expect.fail('nothing was thrown');
}

describe('a file of packed weights', () => {
  it('gives back what was written, and leaves nothing beside it', () =>
    withFolder(async (folder) => {
      const file = join(folder, 'a.packed');
      await writePackedFile(file, content, parts);
      expect(await readdir(folder)).to.deep.equal(['a.packed']);
      const opened = await openPackedFile(file);
      expect(opened).to.deep.include({ ...content, lengths: parts.map(({ length }) => length) });
      await opened.close();
      const read = await contentOf(file);
      read.forEach((part, i) => expect(Buffer.compare(part, parts[i]!)).to.equal(0));
    }));

  it('is whole, whoever writes at the same time', () =>
    withFolder(async (folder) => {
      const file = join(folder, 'a.packed');
      await Promise.all([1, 2, 3].map((value) => writePackedFile(file, content, [new Uint8Array(2 ** 20).fill(value)])));
      const [part] = await contentOf(file);
      expect(new Set(part).size).to.equal(1);
      expect(await readdir(folder)).to.deep.equal(['a.packed']);
    }));

  it('is refused wherever a byte of it changed', () =>
    withFolder(async (folder) => {
      const file = join(folder, 'a.packed');
      const small = [new Uint8Array(100).fill(7), Uint8Array.of(1, 2, 3)];
      await writePackedFile(file, content, small);
      const whole = await readFile(file);
      // Bytes 28 to 4096 are padding of the prefix.
      const places = [...Array(28).keys(), ...Array.from({ length: whole.length - 4096 }, (_, i) => 4096 + i)];
      for (const place of places) {
        const changed = Buffer.from(whole);
        changed[place]! ^= 0x10;
        await writeFile(file, changed);
        const outcome = await contentOf(file).catch(() => undefined);
        expect(outcome, `byte ${String(place)}`).to.equal(undefined);
      }
    }));

  it('is refused with the reason when it is cut, is something else, or has other parts than are asked for', () =>
    withFolder(async (folder) => {
      const file = join(folder, 'a.packed');
      await writePackedFile(file, content, parts);
      const opened = await openPackedFile(file);
      expect(await faultOf(opened.read([new Uint8Array(1)]))).to.contain(`part 0 has ${String(parts[0]!.length)} bytes, expected 1`);
      expect(await faultOf(opened.read(parts.slice(0, 2)))).to.contain('expected 0');
      await opened.close();
      const { length } = await readFile(file);
      await truncate(file, length - 1);
      expect(await faultOf(openPackedFile(file))).to.contain(`it has ${String(length - 1)} bytes, expected ${String(length)}`);
      await truncate(file, 100);
      expect(await faultOf(openPackedFile(file))).to.contain('it ends at offset 100');
      await writeFile(file, Buffer.alloc(5000, 'x'));
      expect(await faultOf(openPackedFile(file))).to.contain('does not begin as such a file does');
      expect(await faultOf(openPackedFile(folder))).to.contain('not a regular file');
    }));

  it('leaves nothing behind when it cannot be written', () =>
    withFolder(async (folder) => {
      const notes = {
        toJSON: () => {
          throw new Error('no such JSON');
        },
      };
      expect(await faultOf(writePackedFile(join(folder, 'a.packed'), { fingerprint: 'f', notes }, parts))).to.contain('no such JSON');
      expect(await readdir(folder)).to.deep.equal([]);
    }));
});
