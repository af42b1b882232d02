import { execFileSync } from 'node:child_process';
import { mkdir, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'chai';
import { Checkpoint } from '../../src/checkpoint/checkpoint.js';
import { ReadBuffer } from '../../src/checkpoint/read-buffer.js';
import type { MoeError } from '../../src/errors.js';
import type { TensorToWrite } from './checkpoint-writer.js';
import { withFolder, writeConfig, writeSafetensors } from './checkpoint-writer.js';

const shards = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'] as const;

function u8(...values: number[]): TensorToWrite {
  return { dtype: 'U8', shape: [values.length], bytes: Uint8Array.from(values) };
}

async function writeIndex(folder: string, weightMap: unknown): Promise<void> {
  await writeFile(join(folder, 'model.safetensors.index.json'), JSON.stringify({ metadata: { total_size: 1 }, weight_map: weightMap }));
}

/** Two shards: a and b in the first, c in the second. */
async function writeSharded(folder: string, weightMap: unknown): Promise<void> {
  await writeConfig(folder, {});
  await writeSafetensors(join(folder, shards[0]), { a: u8(1, 2), b: u8(3) });
  await writeSafetensors(join(folder, shards[1]), { c: u8(4, 5, 6) });
  await writeIndex(folder, weightMap);
}

async function refusal(folder: string): Promise<MoeError> {
  return Checkpoint.open(folder).then(
    async (checkpoint) => {
      await checkpoint.close();
      return expect.fail('the folder was accepted');
    },
    (error: unknown) => error as MoeError,
  );
}

interface Corrupt {
  readonly name: string;
  readonly write: (folder: string) => Promise<void>;
  readonly code: string;
  readonly says: readonly string[];
}

const corrupt: readonly Corrupt[] = [
  { name: 'without config.json', write: () => Promise.resolve(), code: 'MOE_CHECKPOINT_NOT_FOUND', says: ['config.json'] },
  {
    name: 'with a config.json that is no JSON',
    write: (folder) => writeFile(join(folder, 'config.json'), '{"a":'),
    code: 'MOE_CHECKPOINT_CONFIG',
    says: ['config.json', 'not valid JSON'],
  },
  {
    name: 'with a config.json that is a list',
    write: (folder) => writeFile(join(folder, 'config.json'), '[]'),
    code: 'MOE_CHECKPOINT_CONFIG',
    says: ['config.json', 'object'],
  },
  {
    name: 'with a config.json nested 100,000 deep',
    write: (folder) => writeFile(join(folder, 'config.json'), '['.repeat(100_000) + ']'.repeat(100_000)),
    code: 'MOE_CHECKPOINT_CONFIG',
    says: ['config.json', 'nests deeper'],
  },
  {
    name: 'without weights',
    write: (folder) => writeConfig(folder, {}),
    code: 'MOE_CHECKPOINT_NOT_FOUND',
    says: ['model.safetensors', 'complete'],
  },
  {
    name: 'with pickle files only',
    write: async (folder) => {
      await writeConfig(folder, {});
      await writeFile(join(folder, 'pytorch_model.bin'), 'x');
    },
    code: 'MOE_CHECKPOINT_NOT_FOUND',
    says: ['pytorch_model.bin', 'Convert to safetensors'],
  },
  {
    name: 'with shards but no index',
    write: async (folder) => {
      await writeConfig(folder, {});
      await writeSafetensors(join(folder, shards[0]), { a: u8(1) });
    },
    code: 'MOE_CHECKPOINT_NOT_FOUND',
    says: [shards[0], 'index'],
  },
  ...['../evil.safetensors', '/etc/evil.safetensors', 'sub/evil.safetensors', '..', 'a\\b.safetensors', 'nul\0.safetensors'].map(
    (name) => ({
      name: `whose index names ${JSON.stringify(name)}`,
      write: async (folder: string) => writeSharded(folder, { a: shards[0], evil: name }),
      code: 'MOE_CHECKPOINT_INDEX',
      says: ['evil', JSON.stringify(name)],
    }),
  ),
  {
    name: 'with a missing shard',
    write: (folder) => writeSharded(folder, { a: shards[0], far: 'model-00009-of-00009.safetensors' }),
    code: 'MOE_CHECKPOINT_INDEX',
    says: ['far', 'model-00009-of-00009.safetensors', 'missing'],
  },
  {
    name: 'whose index names a pickle file',
    write: (folder) => writeSharded(folder, { a: 'pytorch_model.bin' }),
    code: 'MOE_CHECKPOINT_INDEX',
    says: ['pytorch_model.bin', 'safetensors'],
  },
  {
    name: 'with a tensor in the wrong shard',
    write: (folder) => writeSharded(folder, { a: shards[0], b: shards[0], c: shards[0] }),
    code: 'MOE_CHECKPOINT_INDEX',
    says: ['tensor c', shards[0]],
  },
  {
    name: 'with a tensor that the index puts into the other shard',
    write: (folder) => writeSharded(folder, { a: shards[1], c: shards[1], b: shards[0] }),
    code: 'MOE_CHECKPOINT_INDEX',
    says: ['tensor a', `should lie in ${shards[1]}`, `${shards[0]} holds it`],
  },
  {
    name: 'with an index without a map',
    write: (folder) => writeSharded(folder, undefined),
    code: 'MOE_CHECKPOINT_INDEX',
    says: ['weight_map'],
  },
  { name: 'with an empty map', write: (folder) => writeSharded(folder, {}), code: 'MOE_CHECKPOINT_INDEX', says: ['no tensors'] },
  {
    name: 'with a number in the map',
    write: (folder) => writeSharded(folder, { a: 7 }),
    code: 'MOE_CHECKPOINT_INDEX',
    says: ['tensor a', '7'],
  },
  {
    name: 'with one name in two shards and not in the index',
    write: async (folder) => {
      await writeSharded(folder, { b: shards[0], c: shards[1] });
      await writeSafetensors(join(folder, shards[1]), { a: u8(9), c: u8(4, 5, 6) });
    },
    code: 'MOE_CHECKPOINT_INDEX',
    says: ['tensor a', shards[0], shards[1]],
  },
  {
    name: 'with a truncated shard',
    write: async (folder) => {
      await writeSharded(folder, { a: shards[0], b: shards[0], c: shards[1] });
      const size = 8 + JSON.stringify({ __metadata__: { format: 'pt' }, c: { dtype: 'U8', shape: [3], data_offsets: [0, 3] } }).length + 3;
      await truncate(join(folder, shards[1]), size - 1);
    },
    code: 'MOE_CHECKPOINT_HEADER',
    says: [shards[1], 'tensor c', 'truncated'],
  },
  {
    name: 'with a shard that is a folder',
    write: async (folder) => {
      await writeConfig(folder, {});
      await mkdir(join(folder, 'model.safetensors'));
    },
    code: 'MOE_CHECKPOINT_READ',
    says: ['model.safetensors', 'regular file'],
  },
];

describe('Checkpoint', () => {
  for (const { name, write, code, says } of corrupt) {
    it(`refuses a folder ${name}`, () =>
      withFolder(async (folder) => {
        await write(folder);
        const error = await refusal(folder);
        expect(error.code, error.message).to.equal(code);
        for (const part of says) expect(error.message).to.include(part);
      }));
  }

  it('refuses a folder that is not there, and a file', () =>
    withFolder(async (folder) => {
      expect(await refusal(join(folder, 'none'))).to.include({ code: 'MOE_CHECKPOINT_NOT_FOUND' });
      await writeFile(join(folder, 'file'), '');
      expect((await refusal(join(folder, 'file'))).message).to.include('is a file');
    }));

  it('refuses pipes, whose opening would wait for a writer', () =>
    withFolder(async (folder) => {
      execFileSync('mkfifo', [join(folder, 'config.json'), join(folder, 'model.safetensors')]);
      expect((await refusal(folder)).message)
        .to.include('config.json')
        .and.to.include('not a regular file');
      await rm(join(folder, 'config.json'));
      await writeConfig(folder, {});
      expect((await refusal(folder)).message)
        .to.include('model.safetensors')
        .and.to.include('not a regular file');
    }));

  it('finds each tensor on its own, in whichever shard it lies', () =>
    withFolder(async (folder) => {
      await writeSharded(folder, { a: shards[0], c: shards[1] });
      const checkpoint = await Checkpoint.open(folder);
      expect([...checkpoint.names()].sort()).to.deep.equal(['a', 'b', 'c']);
      expect(checkpoint.tensor('c')).to.include({ file: shards[1], dtype: 'u8' });
      expect([...(await checkpoint.read('c'))]).to.deep.equal([4, 5, 6]);
      expect((await checkpoint.readMany(['c', 'b', 'a'])).map((bytes) => [...bytes])).to.deep.equal([[4, 5, 6], [3], [1, 2]]);
      expect(() => checkpoint.tensor('d'))
        .to.throw('no tensor d')
        .with.property('code', 'MOE_CHECKPOINT_TENSOR');
      await checkpoint.close();
    }));

  it('reads neighbours with one call, each aligned for its type, into memory that serves again', () =>
    withFolder(async (folder) => {
      await writeConfig(folder, {});
      await writeSafetensors(join(folder, 'model.safetensors'), {
        byte: u8(9),
        half: { dtype: 'BF16', shape: [2], bytes: Uint8Array.of(1, 2, 3, 4) },
        word: { dtype: 'F32', shape: [1], bytes: Uint8Array.of(5, 6, 7, 8) },
      });
      const checkpoint = await Checkpoint.open(folder);
      const expected = [[9], [1, 2, 3, 4], [5, 6, 7, 8]];
      const memory = new ReadBuffer();
      for (const into of [undefined, memory, memory]) {
        memory.clear();
        const read = await checkpoint.readMany(['byte', 'half', 'word'], into);
        expect(read.map((bytes) => [...bytes])).to.deep.equal(expected);
        expect(read.map(({ byteOffset }, i) => byteOffset % [1, 2, 4][i]!)).to.deep.equal([0, 0, 0]);
      }
      const place = new Uint8Array(4);
      expect(await checkpoint.readRows('half', 0, 2, place)).to.equal(place);
      expect([...place]).to.deep.equal([1, 2, 3, 4]);
      await checkpoint.close();
    }));

  it('reads rows, and float values of three types', () =>
    withFolder(async (folder) => {
      await writeConfig(folder, {});
      await writeSafetensors(join(folder, 'model.safetensors'), {
        rows: { dtype: 'U8', shape: [3, 2], bytes: Uint8Array.of(1, 2, 3, 4, 5, 6) },
        f32: { dtype: 'F32', shape: [1], bytes: new Uint8Array(Float32Array.of(1.5).buffer) },
        bf16: { dtype: 'BF16', shape: [1], bytes: Uint8Array.of(0xc0, 0x3f) },
        f16: { dtype: 'F16', shape: [1], bytes: Uint8Array.of(0x00, 0x3e) },
      });
      const checkpoint = await Checkpoint.open(folder);
      expect([...(await checkpoint.readRows('rows', 1, 2))]).to.deep.equal([3, 4, 5, 6]);
      for (const name of ['f32', 'bf16', 'f16']) expect([...(await checkpoint.readFloat32(name))]).to.deep.equal([1.5]);
      const thrown = await checkpoint.readFloat32('rows').catch((error: unknown) => error);
      expect(thrown).to.include({ code: 'MOE_CHECKPOINT_TENSOR' });
      const beyond = await checkpoint.readRows('rows', 2, 2).catch((error: unknown) => error);
      expect(beyond).to.include({ code: 'MOE_INTERNAL' });
      await checkpoint.close();
    }));

  it('refuses float values that are NaN or infinite, naming tensor and index', () =>
    withFolder(async (folder) => {
      await writeConfig(folder, {});
      await writeSafetensors(join(folder, 'model.safetensors'), {
        f32: { dtype: 'F32', shape: [3], bytes: new Uint8Array(Float32Array.of(1, -Infinity, 2).buffer) },
        bf16: { dtype: 'BF16', shape: [2], bytes: Uint8Array.of(0xc0, 0x3f, 0xc0, 0x7f) },
      });
      const checkpoint = await Checkpoint.open(folder);
      for (const name of ['f32', 'bf16']) {
        const thrown = await checkpoint.readFloat32(name).catch((error: unknown) => error);
        expect(thrown, name).to.include({ code: 'MOE_CHECKPOINT_TENSOR' });
        expect(thrown, name).to.have.property('message').that.contains(name).and.contains('element 1');
      }
      await checkpoint.close();
    }));

  it('reports a shard that shrinks after it was opened, with file and offset', () =>
    withFolder(async (folder) => {
      await writeConfig(folder, {});
      await writeSafetensors(join(folder, 'model.safetensors'), { a: u8(1, 2), b: u8(3, 4) });
      const checkpoint = await Checkpoint.open(folder);
      const { begin } = checkpoint.tensor('b');
      await truncate(join(folder, 'model.safetensors'), begin + 1);
      expect([...(await checkpoint.read('a'))]).to.deep.equal([1, 2]);
      const thrown = (await checkpoint.read('b').catch((error: unknown) => error)) as MoeError;
      expect(thrown.code).to.equal('MOE_CHECKPOINT_READ');
      expect(thrown.message).to.include('model.safetensors');
      expect(thrown.details).to.include({ file: 'model.safetensors', offset: begin, expected: 2, actual: 1 });
      await checkpoint.close();
    }));

  it('follows links within the folder and into the blobs of the Hugging Face cache, and no other', () =>
    withFolder(async (folder) => {
      const snapshot = join(folder, 'snapshots', 'abc');
      await mkdir(snapshot, { recursive: true });
      await mkdir(join(folder, 'blobs'));
      await writeConfig(snapshot, {});
      await writeSafetensors(join(folder, 'blobs', 'f00'), { a: u8(7) });
      await symlink('../../blobs/f00', join(snapshot, 'model.safetensors'));
      const checkpoint = await Checkpoint.open(snapshot);
      expect([...(await checkpoint.read('a'))]).to.deep.equal([7]);
      await checkpoint.close();

      await writeSafetensors(join(folder, 'outside.safetensors'), { a: u8(7) });
      const other = join(folder, 'other');
      await mkdir(other);
      await writeConfig(other, {});
      await symlink('../outside.safetensors', join(other, 'model.safetensors'));
      const error = await refusal(other);
      expect(error.message).to.include('model.safetensors').and.to.include('link');
    }));

  it('reads other JSON files of the folder, and refuses paths', () =>
    withFolder(async (folder) => {
      await writeConfig(folder, { a: 1 });
      await writeFile(join(folder, 'generation_config.json'), '{"eos_token_id":[1,2]}');
      await writeSafetensors(join(folder, 'model.safetensors'), { a: u8(1) });
      const checkpoint = await Checkpoint.open(folder);
      expect(checkpoint.config).to.deep.equal({ a: 1 });
      expect(await checkpoint.json('generation_config.json')).to.deep.equal({ eos_token_id: [1, 2] });
      expect(await checkpoint.json('none.json')).to.equal(undefined);
      expect(await checkpoint.json('../x.json').catch((error: unknown) => error)).to.include({ code: 'MOE_CHECKPOINT_CONFIG' });
      await checkpoint.close();
    }));
});
