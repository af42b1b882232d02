import { bitsOf } from '../dtype.js';
import { MoeError } from '../errors.js';
import { bf16ToFloat32 } from '../quant/bf16.js';
import { f16ToFloat32 } from '../quant/f16.js';
import { checkpointIdentity } from './checkpoint-identity.js';
import { checkFiniteWeights } from './finite-weights.js';
import { isRecord } from './json-scan.js';
import { checkIsFolder, configFile, findWeightFiles, indexFile, readJson } from './model-folder.js';
import { ReadBuffer } from './read-buffer.js';
import type { TensorInfo } from './safetensors.js';
import { readSafetensorsHeader, safetensorsDtypeName } from './safetensors.js';
import { ShardFile } from './shard-file.js';

/** {@link Checkpoint.readMany} reads across gaps up to this size rather than make another call. */
const maxGapBytes = 64 * 1024;

/**
 * A model folder in the Hugging Face layout: config.json and safetensors, whole or in shards. Opening it reads the configuration and
 * the headers, no weights; reading is by position, into memory of the caller's own. Each tensor is found on its own: a module's weight
 * and its scales may lie in different files.
 */
export class Checkpoint {
  /** Path as it was given. */
  readonly directory: string;
  /** config.json. */
  readonly config: Readonly<Record<string, unknown>>;
  /** hf_quant_config.json, where older modelopt exports write their scheme. */
  readonly hfQuantConfig: unknown;
  readonly #shards: ReadonlyMap<string, ShardFile>;
  readonly #tensors: ReadonlyMap<string, TensorInfo>;

  private constructor(
    directory: string,
    config: Readonly<Record<string, unknown>>,
    hfQuantConfig: unknown,
    shards: ReadonlyMap<string, ShardFile>,
    tensors: ReadonlyMap<string, TensorInfo>,
  ) {
    this.directory = directory;
    this.config = config;
    this.hfQuantConfig = hfQuantConfig;
    this.#shards = shards;
    this.#tensors = tensors;
  }

  /**
   * Opens a model folder. The caller closes it.
   *
   * @throws {MoeError} MOE_CHECKPOINT_NOT_FOUND, _CONFIG, _INDEX, _HEADER or _READ, naming the file and the tensor or field.
   */
  static async open(directory: string): Promise<Checkpoint> {
    await checkIsFolder(directory);
    const config = await readJson(directory, configFile);
    if (config === undefined) {
      throw new MoeError(
        'MOE_CHECKPOINT_NOT_FOUND',
        `${directory} has no ${configFile}. Expected a model folder in the Hugging Face layout.`,
        {
          directory,
          file: configFile,
        },
      );
    }
    if (!isRecord(config)) throw new MoeError('MOE_CHECKPOINT_CONFIG', `${configFile}: expected a JSON object.`, { file: configFile });
    const hfQuantConfig = await readJson(directory, 'hf_quant_config.json');
    const { files, fileOf } = await findWeightFiles(directory);
    const shards = new Map<string, ShardFile>();
    try {
      const tensors = new Map<string, TensorInfo>();
      const misplaced = new Map<string, string>();
      for (const name of files) {
        const shard = await ShardFile.open(directory, name);
        shards.set(name, shard);
        addTensors(tensors, misplaced, await readSafetensorsHeader(shard), fileOf);
      }
      if (fileOf !== undefined) checkIndex(tensors, misplaced, fileOf);
      return new Checkpoint(directory, config, hfQuantConfig, shards, tensors);
    } catch (error) {
      await closeAll(shards.values());
      throw error;
    }
  }

  /** Names of all tensors. */
  names(): Iterable<string> {
    return this.#tensors.keys();
  }

  get numTensors(): number {
    return this.#tensors.size;
  }

  has(name: string): boolean {
    return this.#tensors.has(name);
  }

  /** Where a tensor lies, or undefined. */
  find(name: string): TensorInfo | undefined {
    return this.#tensors.get(name);
  }

  /** @throws {MoeError} MOE_CHECKPOINT_TENSOR when there is none of that name. */
  tensor(name: string): TensorInfo {
    const info = this.#tensors.get(name);
    if (info === undefined) {
      throw new MoeError('MOE_CHECKPOINT_TENSOR', `The checkpoint ${this.directory} has no tensor ${name}.`, {
        directory: this.directory,
        tensor: name,
      });
    }
    return info;
  }

  /**
   * All bytes of a tensor, row-major, little-endian. The buffer belongs to the caller and starts at byte 0 of its ArrayBuffer, so that
   * typed arrays of any element type can be laid over it.
   *
   * @throws {MoeError} MOE_CHECKPOINT_TENSOR, MOE_CHECKPOINT_READ
   */
  async read(name: string): Promise<Uint8Array<ArrayBuffer>> {
    const { file, begin, end } = this.tensor(name);
    return this.#shard(file).read(begin, end - begin);
  }

  /**
   * Several tensors at once, in the order of `names`. Neighbours in a file share a system call and a buffer: a checkpoint with every expert
   * apart has more than 10^5 tensors, most of them scalars that lie side by side. Each result is aligned for its element type.
   *
   * @param into - memory to read into; left out = memory of the caller's own.
   * @throws {MoeError} as {@link read}.
   */
  async readMany(names: readonly string[], into = new ReadBuffer()): Promise<Uint8Array<ArrayBuffer>[]> {
    const wanted = names.map((name, position) => ({ position, info: this.tensor(name) }));
    wanted.sort((a, b) => (a.info.file === b.info.file ? a.info.begin - b.info.begin : a.info.file < b.info.file ? -1 : 1));
    const out = new Array<Uint8Array<ArrayBuffer>>(names.length);
    for (let first = 0; first < wanted.length;) {
      const { file, begin } = wanted[first]!.info;
      let next = first;
      let end = begin;
      for (; next < wanted.length; next++) {
        const { info } = wanted[next]!;
        if (info.file !== file || info.begin > end + maxGapBytes) break;
        end = Math.max(end, info.end);
      }
      const bytes = await this.#shard(file).read(begin, end - begin, into.take(end - begin, begin));
      for (const { position, info } of wanted.slice(first, next)) {
        const part = bytes.subarray(info.begin - begin, info.end - begin);
        out[position] = part.byteOffset % Math.ceil(bitsOf(info.dtype) / 8) === 0 ? part : part.slice();
      }
      first = next;
    }
    return out;
  }

  /**
   * Rows firstRow .. firstRow + numRows − 1 along the first dimension; as {@link read}.
   *
   * @param into - where to: memory to take from, or a place of the rows' size. Left out = memory of the caller's own.
   */
  async readRows(
    name: string,
    firstRow: number,
    numRows: number,
    into?: ReadBuffer | Uint8Array<ArrayBuffer>,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const { file, begin, end, shape } = this.tensor(name);
    const rows = shape[0] ?? 0;
    if (!Number.isInteger(firstRow) || !Number.isInteger(numRows) || firstRow < 0 || numRows < 0 || firstRow + numRows > rows) {
      throw new MoeError(
        'MOE_INTERNAL',
        `Rows ${String(firstRow)} to ${String(firstRow + numRows)} of tensor ${name} were asked for; its shape is [${shape.join(', ')}].`,
        { tensor: name, firstRow, numRows },
      );
    }
    const rowBytes = rows === 0 ? 0 : (end - begin) / rows;
    const length = numRows * rowBytes;
    return this.#shard(file).read(begin + firstRow * rowBytes, length, into instanceof ReadBuffer ? into.take(length) : into);
  }

  /**
   * Values of an F32, BF16 or F16 tensor.
   *
   * @throws {MoeError} MOE_CHECKPOINT_TENSOR for another type, or a value that is NaN or infinite.
   */
  async readFloat32(name: string): Promise<Float32Array> {
    const info = this.tensor(name);
    const { dtype, file } = info;
    const bytes = await this.read(name);
    checkFiniteWeights(info, bytes);
    if (dtype === 'f32') return new Float32Array(bytes.buffer);
    if (dtype === 'bf16') return bf16ToFloat32(new Uint16Array(bytes.buffer));
    if (dtype === 'f16') return f16ToFloat32(new Uint16Array(bytes.buffer));
    throw new MoeError('MOE_CHECKPOINT_TENSOR', `${file}: tensor ${name}: expected F32, BF16 or F16, got ${safetensorsDtypeName(dtype)}.`, {
      file,
      tensor: name,
      expected: ['f32', 'bf16', 'f16'],
      actual: dtype,
    });
  }

  /**
   * Another JSON file of the folder (generation_config.json, …), undefined when there is none.
   *
   * @throws {MoeError} MOE_CHECKPOINT_CONFIG
   */
  async json(file: string): Promise<unknown> {
    return readJson(this.directory, file);
  }

  /** Bytes of all tensors. */
  get weightBytes(): number {
    let sum = 0;
    for (const { begin, end } of this.#tensors.values()) sum += end - begin;
    return sum;
  }

  /** As {@link checkpointIdentity} makes it, of the files as they were opened. */
  async identity(): Promise<string> {
    return checkpointIdentity(this.#shards.values());
  }

  /** Closes the files; reads afterwards fail. */
  async close(): Promise<void> {
    await closeAll(this.#shards.values());
  }

  #shard(file: string): ShardFile {
    return this.#shards.get(file)!;
  }
}

async function closeAll(shards: Iterable<ShardFile>): Promise<void> {
  await Promise.all(Array.from(shards, async (shard) => shard.close()));
}

/**
 * A tensor that the index puts into another file goes to `misplaced`; one that the index does not list is taken from where it is.
 */
function addTensors(
  tensors: Map<string, TensorInfo>,
  misplaced: Map<string, string>,
  found: readonly TensorInfo[],
  fileOf: ReadonlyMap<string, string> | undefined,
): void {
  for (const info of found) {
    const listed = fileOf?.get(info.name);
    if (listed !== undefined && listed !== info.file) {
      misplaced.set(info.name, info.file);
      continue;
    }
    const other = tensors.get(info.name);
    if (other !== undefined) {
      throw new MoeError(
        'MOE_CHECKPOINT_INDEX',
        `${indexFile}: tensor ${info.name} is not listed, and both ${other.file} and ${info.file} hold one of that name.`,
        { file: indexFile, tensor: info.name },
      );
    }
    tensors.set(info.name, info);
  }
}

function checkIndex(
  tensors: ReadonlyMap<string, TensorInfo>,
  misplaced: ReadonlyMap<string, string>,
  fileOf: ReadonlyMap<string, string>,
): void {
  for (const [name, file] of fileOf) {
    if (tensors.has(name)) continue;
    const actual = misplaced.get(name);
    throw new MoeError(
      'MOE_CHECKPOINT_INDEX',
      `${indexFile}: tensor ${name} should lie in ${file}, but ${actual === undefined ? 'no shard holds it' : `${actual} holds it`}.`,
      { file: indexFile, tensor: name, expected: file, actual: actual ?? null },
    );
  }
}
