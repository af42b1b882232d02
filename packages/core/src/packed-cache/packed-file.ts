/**
 * One file of packed weights: a prefix of 4096 bytes, the parts one after the other, and a trailer in JSON that says what they are. The prefix says
 * where the trailer is and is written last, so that a file that was not finished is no file.
 */
import { constants } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { open, rename, rm } from 'node:fs/promises';
import { blockHash } from './block-hash.js';

/** What a file holds beside the bytes. */
export interface PackedFileContent {
  /** Everything that the bytes depend on; equal text, equal bytes. */
  readonly fingerprint: string;
  /** Plain JSON of the backend's own. */
  readonly notes: unknown;
}

interface Trailer extends PackedFileContent {
  /** Of each part its bytes, and the hash of each of its blocks. */
  readonly parts: readonly { readonly byteLength: number; readonly hashes: readonly number[] }[];
}

const magic = 0x6b70656f6d2d3150n;
/** Raised when anything in this file changes. */
const fileVersion = 1;
/** Parts begin at a page, so that the system copies whole pages. */
const prefixBytes = 4096;
const blockBytes = 4 * 2 ** 20;
const blocksInFlight = 4;
const maxTrailerBytes = 64 * 2 ** 20;

let numDrafts = 0;

/**
 * Writes a file beside its place and moves it there when all of it is on the disk: a reader sees the old file, the new one or none, whoever else
 * writes.
 *
 * @param parts - each begins at a multiple of four in its buffer, and stays as it is meanwhile.
 * @throws of the file system; nothing is left behind then.
 */
export async function writePackedFile(file: string, content: PackedFileContent, parts: readonly Uint8Array[]): Promise<void> {
  const draft = `${file}.${process.pid}-${++numDrafts}.tmp`;
  const handle = await open(draft, 'wx');
  try {
    let position = prefixBytes;
    const described: Trailer['parts'][number][] = [];
    for (const part of parts) {
      const hashes: number[] = [];
      for (const block of blocksOf(part)) {
        hashes.push(blockHash(block));
        await writeAll(handle, block, position);
        position += block.length;
      }
      described.push({ byteLength: part.length, hashes });
    }
    const trailer = Buffer.from(JSON.stringify({ ...content, parts: described } satisfies Trailer));
    await writeAll(handle, trailer, position);
    await writeAll(handle, prefixOf(position, trailer), 0);
    await handle.sync();
    await handle.close();
    await rename(draft, file);
  } catch (error) {
    await handle.close().catch(() => undefined);
    await rm(draft, { force: true }).catch(() => undefined);
    throw error;
  }
}

/** An open file whose trailer was read. */
export interface PackedFile extends PackedFileContent {
  /** Bytes of each part. */
  readonly lengths: readonly number[];
  /**
   * Reads the parts into `places`, which have just these lengths and begin at a multiple of four in their buffers. May be called once.
   *
   * @throws {Error} with a clause that says what is wrong with the file.
   */
  readonly read: (places: readonly Uint8Array[]) => Promise<void>;
  readonly close: () => Promise<void>;
}

/** @throws {Error} of the file system, with `code`; one without says in a clause what is wrong with the file. */
export async function openPackedFile(file: string): Promise<PackedFile> {
  // Opening a pipe would wait for a writer.
  const handle = await open(file, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const { fingerprint, notes, parts } = await readTrailer(handle);
    return {
      fingerprint,
      notes,
      lengths: parts.map(({ byteLength }) => byteLength),
      read: (places) => readParts(handle, parts, places),
      close: () => handle.close(),
    };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

async function readTrailer(handle: FileHandle): Promise<Trailer> {
  const stat = await handle.stat();
  if (!stat.isFile()) throw new Error('it is not a regular file');
  const prefix = await readAll(handle, Buffer.alloc(prefixBytes), 0);
  if (prefix.readBigUInt64LE(0) !== magic) throw new Error('it does not begin as such a file does');
  if (prefix.readUInt32LE(8) !== fileVersion) throw new Error(`it has version ${prefix.readUInt32LE(8)}, expected ${fileVersion}`);
  const trailerBytes = prefix.readUInt32LE(12);
  const position = Number(prefix.readBigUInt64LE(16));
  if (trailerBytes > maxTrailerBytes || position + trailerBytes !== stat.size)
    throw new Error(`it has ${stat.size} bytes, expected ${position + trailerBytes}`);
  const text = await readAll(handle, Buffer.alloc(trailerBytes), position);
  if (blockHash(text) !== prefix.readUInt32LE(24)) throw new Error('its trailer is damaged');
  const trailer = JSON.parse(text.toString()) as Trailer;
  const sum = trailer.parts.reduce((bytes, { byteLength }) => bytes + byteLength, prefixBytes);
  if (sum !== position) throw new Error(`its parts have ${sum} bytes, expected ${position}`);
  return trailer;
}

async function readParts(handle: FileHandle, parts: Trailer['parts'], places: readonly Uint8Array[]): Promise<void> {
  const reads: { readonly block: Uint8Array; readonly position: number; readonly hash: number | undefined }[] = [];
  let position = prefixBytes;
  for (const [index, { byteLength, hashes }] of parts.entries()) {
    const place = places[index];
    if (place?.length !== byteLength) throw new Error(`its part ${index} has ${byteLength} bytes, expected ${place?.length ?? 0}`);
    for (const [i, block] of blocksOf(place).entries()) {
      reads.push({ block, position, hash: hashes[i] });
      position += block.length;
    }
  }
  if (places.length !== parts.length) throw new Error(`it has ${parts.length} parts, expected ${places.length}`);
  let next = 0;
  const lane = async (): Promise<void> => {
    for (let read = reads[next++]; read !== undefined; read = reads[next++]) {
      const { block, position: at, hash } = read;
      await readAll(handle, block, at);
      if (blockHash(block) === hash) continue;
      next = reads.length;
      throw new Error(`${block.length} bytes at offset ${at} are not what was written`);
    }
  };
  // All have to end before the memory may be given up.
  const results = await Promise.allSettled(Array.from({ length: blocksInFlight }, lane));
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

function blocksOf(part: Uint8Array): Uint8Array[] {
  return Array.from({ length: Math.ceil(part.length / blockBytes) }, (_, i) => part.subarray(i * blockBytes, (i + 1) * blockBytes));
}

function prefixOf(position: number, trailer: Uint8Array): Buffer {
  const prefix = Buffer.alloc(prefixBytes);
  prefix.writeBigUInt64LE(magic, 0);
  prefix.writeUInt32LE(fileVersion, 8);
  prefix.writeUInt32LE(trailer.length, 12);
  prefix.writeBigUInt64LE(BigInt(position), 16);
  prefix.writeUInt32LE(blockHash(trailer), 24);
  return prefix;
}

async function readAll<Bytes extends Uint8Array>(handle: FileHandle, bytes: Bytes, position: number): Promise<Bytes> {
  for (let done = 0; done < bytes.length;) {
    const { bytesRead } = await handle.read(bytes, done, bytes.length - done, position + done);
    if (bytesRead === 0) throw new Error(`it ends at offset ${position + done}`);
    done += bytesRead;
  }
  return bytes;
}

async function writeAll(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += (await handle.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
  }
}
