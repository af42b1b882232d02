import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fixtureFolders, readSafetensors } from '@moe-server/test-kit';
import { expect } from 'chai';
import fc from 'fast-check';
import { parseSafetensorsHeader, readSafetensorsHeader } from '../../src/checkpoint/safetensors.js';
import { ShardFile } from '../../src/checkpoint/shard-file.js';
import type { MoeError } from '../../src/errors.js';
import { isMoeError } from '../../src/errors.js';
import { frame, withFolder } from './checkpoint-writer.js';

const file = 'model-00002-of-00003.safetensors';

async function readHeader(content: Uint8Array): Promise<unknown> {
  return withFolder(async (folder) => {
    await writeFile(join(folder, file), content);
    const shard = await ShardFile.open(folder, file);
    try {
      return await readSafetensorsHeader(shard);
    } finally {
      await shard.close();
    }
  });
}

async function refusal(content: Uint8Array): Promise<MoeError> {
  try {
    await readHeader(content);
  } catch (error) {
    if (isMoeError(error)) return error;
    throw error;
  }
  return expect.fail('the file was accepted');
}

function withLength(length: bigint, rest: Uint8Array = new Uint8Array()): Buffer {
  const start = Buffer.alloc(8);
  start.writeBigUInt64LE(length);
  return Buffer.concat([start, rest]);
}

/** A file of the given header text and eight bytes of data. */
function file8(header: string | Uint8Array): Buffer {
  return Buffer.concat([frame(header), Buffer.alloc(8)]);
}

const a = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}';
const b = '"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}';

function tensor(fields: string): Buffer {
  return file8(`{${a},"x.weight":{${fields}}}`);
}

const corrupt: readonly { readonly name: string; readonly content: Uint8Array; readonly says: readonly string[] }[] = [
  { name: 'of two bytes', content: Buffer.from([1, 2]), says: ['2 bytes'] },
  { name: 'empty', content: Buffer.alloc(0), says: ['0 bytes'] },
  { name: 'whose header length is 2^63', content: withLength(2n ** 63n), says: ['9223372036854775808'] },
  { name: 'whose header length is above the limit', content: withLength(100_000_001n), says: ['100000001', '100000000'] },
  { name: 'whose header ends after the file', content: withLength(1000n, Buffer.from('{}')), says: ['1000', 'truncated'] },
  { name: 'without a header', content: file8(''), says: ['does not begin'] },
  {
    name: 'with invalid UTF-8',
    content: file8(Buffer.concat([Buffer.from('{"'), Buffer.from([0xff, 0xfe]), Buffer.from('":1}')])),
    says: ['UTF-8'],
  },
  { name: 'whose header is a list', content: file8('[]'), says: ['does not begin'] },
  { name: 'whose header is no JSON', content: file8('{"a":}'), says: ['not valid JSON'] },
  { name: 'nested 100,000 deep', content: file8(`{"a":${'['.repeat(100_000)}`), says: ['nests deeper'] },
  { name: 'with a duplicate name', content: file8(`{${a},${a},${b}}`), says: ['more than once'] },
  {
    name: 'with a duplicate field',
    content: tensor('"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[4,8]'),
    says: ['occurs more than once'],
  },
  { name: 'with an overlap', content: tensor('"dtype":"F32","shape":[1],"data_offsets":[2,6]'), says: ['x.weight', 'overlaps'] },
  { name: 'with a hole', content: tensor('"dtype":"U8","shape":[2],"data_offsets":[6,8]'), says: ['x.weight', 'hole of 2 bytes'] },
  { name: 'with bytes left over', content: tensor('"dtype":"U8","shape":[2],"data_offsets":[4,6]'), says: ['cover 6 bytes', '8 follow'] },
  { name: 'with bytes missing', content: tensor('"dtype":"U8","shape":[8],"data_offsets":[4,12]'), says: ['x.weight', 'holds 8 bytes'] },
  { name: 'with end before begin', content: tensor('"dtype":"F32","shape":[1],"data_offsets":[8,4]'), says: ['x.weight', '[8, 4]'] },
  {
    name: 'whose shape and offsets differ',
    content: tensor('"dtype":"F32","shape":[2],"data_offsets":[4,8]'),
    says: ['x.weight', 'needs 8'],
  },
  {
    name: 'whose shape overflows',
    content: tensor('"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[4,8]'),
    says: ['x.weight', 'overflows'],
  },
  {
    name: 'whose shape overflows before a zero',
    content: tensor('"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[4,4]'),
    says: ['x.weight', 'overflows'],
  },
  { name: 'with a negative size', content: tensor('"dtype":"F32","shape":[-1],"data_offsets":[4,8]'), says: ['x.weight', 'non-negative'] },
  {
    name: 'with a fractional size',
    content: tensor('"dtype":"F32","shape":[1.5],"data_offsets":[4,8]'),
    says: ['x.weight', 'non-negative'],
  },
  {
    name: 'with a size in exponent form',
    content: tensor('"dtype":"F32","shape":[1e999],"data_offsets":[4,8]'),
    says: ['x.weight', 'non-negative'],
  },
  { name: 'with a null shape', content: tensor('"dtype":"F32","shape":null,"data_offsets":[4,8]'), says: ['x.weight', 'non-negative'] },
  { name: 'with a size in quotes', content: tensor('"dtype":"F32","shape":["1"],"data_offsets":[4,8]'), says: ['x.weight', 'shape'] },
  { name: 'with three offsets', content: tensor('"dtype":"F32","shape":[1],"data_offsets":[4,8,8]'), says: ['x.weight', 'data_offsets'] },
  { name: 'with an unknown dtype', content: tensor('"dtype":"F31","shape":[1],"data_offsets":[4,8]'), says: ['x.weight', 'F31', 'BF16'] },
  { name: 'with a field missing', content: tensor('"dtype":"F32","data_offsets":[4,8]'), says: ['x.weight', 'shape'] },
  { name: 'with an unknown field', content: tensor('"dtype":"F32","shape":[1],"data_offsets":[4,8],"more":1'), says: ['x.weight', 'more'] },
  { name: 'whose entry is a number', content: file8(`{${a},${b},"x.weight":3}`), says: ['x.weight', 'object'] },
  { name: 'with half a byte', content: tensor('"dtype":"F4","shape":[3],"data_offsets":[4,5]'), says: ['x.weight', 'whole bytes'] },
  { name: 'with metadata that is no object', content: file8(`{"__metadata__":[],${a},${b}}`), says: ['__metadata__'] },
  { name: 'with metadata that is no string', content: file8(`{"__metadata__":{"n":1},${a},${b}}`), says: ['__metadata__', '"n"'] },
  {
    name: 'with a name of 2000 characters',
    content: file8(`{"${'n'.repeat(2000)}":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}`),
    says: ['name'],
  },
  {
    name: 'with half a surrogate pair in a name',
    content: file8('{"\\ud800":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'),
    says: ['well-formed'],
  },
];

describe('readSafetensorsHeader', () => {
  for (const { name, content, says } of corrupt) {
    it(`refuses a file ${name}, naming the file and what is wrong`, async () => {
      const error = await refusal(content);
      expect(error.code).to.equal('MOE_CHECKPOINT_HEADER');
      expect(error.details.file).to.equal(file);
      for (const part of [file, ...says]) expect(error.message).to.include(part);
    });
  }

  it('names tensor and offset in the details', async () => {
    const { details } = await refusal(tensor('"dtype":"U8","shape":[8],"data_offsets":[4,12]'));
    expect(details).to.include({ tensor: 'x.weight', file });
    expect(details.offset).to.be.a('number');
    expect(details.expected).to.not.equal(details.actual);
  });

  it('accepts scalars, empty tensors, spaces, any alignment, and strange names', async () => {
    const header =
      '{ "s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"../../etc/passwd":{"dtype":"U8","shape":[3],"data_offsets":[4,7]},' +
      '"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[7,8]},"e":{"dtype":"F32","shape":[0,7],"data_offsets":[8,8]}}  \n';
    const tensors = (await readHeader(file8(header))) as { readonly name: string; readonly begin: number; readonly end: number }[];
    expect(tensors.map(({ name }) => name)).to.deep.equal(['s', '../../etc/passwd', '__proto__', 'e']);
    expect(tensors[1]).to.include({ begin: 8 + header.length + 4, end: 8 + header.length + 7 });
  });

  it('finds every tensor where the kit finds it', () => {
    const folder = fixtureFolders()[0] ?? expect.fail('no fixture');
    const path = join(folder, 'reference.safetensors');
    const expected = readSafetensors(path);
    return ShardFile.open(folder, 'reference.safetensors').then(async (shard) => {
      const tensors = await readSafetensorsHeader(shard);
      expect(tensors.length).to.equal(expected.size);
      for (const { name, begin, end, shape } of tensors) {
        expect(await shard.read(begin, end - begin), name).to.deep.equal(expected.get(name)?.bytes);
        expect(shape).to.deep.equal(expected.get(name)?.shape);
      }
      await shard.close();
    });
  });
});

/** Parses, and lets nothing but a MoeError through. */
function parsesOrRefuses(bytes: Uint8Array, dataBytes: number): void {
  try {
    parseSafetensorsHeader(bytes, file, dataBytes);
  } catch (error) {
    if (!isMoeError(error)) throw error;
    expect(error.message).to.include(file);
  }
}

describe('parseSafetensorsHeader', () => {
  it('answers random bytes with a MoeError', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), fc.nat(1000), (bytes, dataBytes) => {
        parsesOrRefuses(bytes, dataBytes);
        parsesOrRefuses(Uint8Array.of(0x7b, ...bytes), dataBytes);
      }),
      { seed: 10, numRuns: 500 },
    );
  });

  it('answers any JSON with a MoeError or tensors', () => {
    const value = fc.oneof(
      fc.integer(),
      fc.double(),
      fc.string(),
      fc.constant(null),
      fc.array(fc.maxSafeInteger(), { maxLength: 3 }),
      fc.json().map((text) => JSON.parse(text) as unknown),
    );
    const entry = fc.record(
      { dtype: fc.oneof(fc.constantFrom('F32', 'U8', 'F4', 'BF16'), value), shape: value, data_offsets: value },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(fc.dictionary(fc.string(), fc.oneof(entry, value)), fc.nat(100), (header, dataBytes) => {
        parsesOrRefuses(Buffer.from(JSON.stringify(header)), dataBytes);
      }),
      { seed: 11, numRuns: 500 },
    );
  });

  it('accepts what covers the data exactly once, in any order, and nothing that was moved by a byte', () => {
    const sizes = fc.array(fc.nat(20), { minLength: 1, maxLength: 12 });
    fc.assert(
      fc.property(sizes, fc.nat(), fc.constantFrom(-1, 1), fc.boolean(), (lengths, pick, shift, both) => {
        let at = 0;
        const spans = lengths.map((length) => [at, (at += length)] as const);
        const write = (list: readonly (readonly [number, number])[]): Uint8Array =>
          Buffer.from(
            JSON.stringify(
              Object.fromEntries(
                [...list.entries()]
                  .reverse()
                  .map(([i, [begin, end]]) => [`t${String(i)}`, { dtype: 'U8', shape: [end - begin], data_offsets: [begin, end] }]),
              ),
            ),
          );
        expect(parseSafetensorsHeader(write(spans), file, at)).to.have.length(lengths.length);
        const index = pick % spans.length;
        const [begin, end] = spans[index]!;
        const moved = [begin + shift, both ? end + shift : end] as const;
        if (moved[0] < 0 || moved[1] < moved[0]) return;
        // An empty tensor may lie at any border, and moved by a byte it may find another.
        if (moved[0] === moved[1] && (at === 0 || spans.some((span) => span[0] === moved[0] || span[1] === moved[0]))) return;
        expect(() => parseSafetensorsHeader(write(spans.map((span, i) => (i === index ? moved : span))), file, at)).to.throw(file);
      }),
      { seed: 12, numRuns: 300 },
    );
  });
});
