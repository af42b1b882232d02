import { constants } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { MoeError, messageOf } from '../errors.js';

/** One call of read(2) transfers at most 2^31 − 4096 bytes on Linux. */
const maxReadBytes = 2 ** 30;

/**
 * A file of weights, read by position into memory of our own. Never mapped: a mapped file that shrinks kills the process with SIGBUS,
 * a read one comes back short and is an error like any other.
 */
export class ShardFile {
  /** Name within the model folder. */
  readonly name: string;
  /** Bytes, when it was opened. */
  readonly size: number;
  /** Time of its last change, when it was opened, in milliseconds since 1970. */
  readonly modifiedMs: number;
  readonly #handle: FileHandle;

  private constructor(name: string, size: number, modifiedMs: number, handle: FileHandle) {
    this.name = name;
    this.size = size;
    this.modifiedMs = modifiedMs;
    this.#handle = handle;
  }

  /** @throws {MoeError} MOE_CHECKPOINT_READ when it cannot be opened or is not a regular file. */
  static async open(directory: string, name: string): Promise<ShardFile> {
    let handle: FileHandle | undefined;
    try {
      // Opening a pipe would wait for a writer, on a thread that then keeps the process from ending.
      handle = await open(join(directory, name), constants.O_RDONLY | constants.O_NONBLOCK);
      const stat = await handle.stat();
      if (!stat.isFile()) throw new Error('it is not a regular file');
      return new ShardFile(name, stat.size, stat.mtimeMs, handle);
    } catch (cause) {
      await handle?.close();
      throw new MoeError('MOE_CHECKPOINT_READ', `${name}: cannot be opened: ${messageOf(cause)}.`, { file: name }, { cause });
    }
  }

  /**
   * Reads `length` bytes at `offset`. The buffer belongs to the caller and starts at byte 0 of its ArrayBuffer.
   *
   * @param bytes - where to; of `length` bytes.
   * @throws {MoeError} MOE_CHECKPOINT_READ when the file ends early (it changed after it was opened) or the read fails.
   */
  async read(offset: number, length: number, bytes = new Uint8Array(length)): Promise<Uint8Array<ArrayBuffer>> {
    let done = 0;
    while (done < length) {
      let bytesRead: number;
      try {
        ({ bytesRead } = await this.#handle.read(bytes, done, Math.min(length - done, maxReadBytes), offset + done));
      } catch (cause) {
        throw new MoeError(
          'MOE_CHECKPOINT_READ',
          `${this.name}: reading ${String(length)} bytes at offset ${String(offset)} failed: ${messageOf(cause)}.`,
          { file: this.name, offset, expected: length },
          { cause },
        );
      }
      if (bytesRead === 0) {
        throw new MoeError(
          'MOE_CHECKPOINT_READ',
          `${this.name}: the file ends at offset ${String(offset + done)}, expected ${String(length)} bytes from offset ${String(offset)}. It was shortened after it was opened; download it again.`,
          { file: this.name, offset, expected: length, actual: done },
        );
      }
      done += bytesRead;
    }
    return bytes;
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }
}
