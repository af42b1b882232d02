import { copyFile, mkdir, open, writeFile } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import type { DType } from '../dtype.js';
import { Random } from '../random.js';
import { checkpointModules } from './synthetic-model.js';
import type { ModuleTensor, SyntheticModel } from './synthetic-model.js';
import { modelConfig, quantizationConfigs } from './synthetic-config.js';

/** What was written. */
export interface WrittenCheckpoint {
  readonly directory: string;
  readonly numTensors: number;
  readonly weightBytes: number;
  readonly shards: readonly string[];
}

/**
 * Writes a whole Qwen3-MoE checkpoint with random weights, in the Hugging Face layout with modelopt quantization: config.json,
 * generation_config.json, hf_quant_config.json, safetensors shards and their index, and on request a tokenizer copied from elsewhere.
 *
 * Data is made and written in pieces of a few MiB, so that a checkpoint may be larger than memory. The same model and seed give the same
 * bytes.
 *
 * @param directory - made where it is missing; files of the same names are replaced.
 * @throws whatever the file system throws.
 */
export async function writeCheckpoint(directory: string, model: SyntheticModel): Promise<WrittenCheckpoint> {
  await mkdir(directory, { recursive: true });
  const tensors = checkpointModules(model);
  const shards = splitIntoShards(tensors, model.maxShardBytes ?? 2 ** 31);
  const width = (value: number): string => String(value).padStart(5, '0');
  const names = shards.map((_, i) =>
    shards.length === 1 ? 'model.safetensors' : `model-${width(i + 1)}-of-${width(shards.length)}.safetensors`,
  );
  const random = new Random(model.seed ?? 1);
  const weightMap: Record<string, string> = {};
  for (const [i, shard] of shards.entries()) {
    const name = names[i] ?? '';
    for (const tensor of shard) weightMap[tensor.name] = name;
    await writeShard(join(directory, name), shard, random.fork(i));
  }
  const weightBytes = tensors.reduce((sum, { byteLength }) => sum + byteLength, 0);
  if (shards.length > 1) {
    await writeJson(join(directory, 'model.safetensors.index.json'), { metadata: { total_size: weightBytes }, weight_map: weightMap });
  }
  const { inConfig, inOwnFile } = quantizationConfigs(model);
  await writeJson(join(directory, 'config.json'), {
    ...modelConfig(model),
    ...(inConfig === undefined ? {} : { quantization_config: inConfig }),
  });
  if (inOwnFile !== undefined) await writeJson(join(directory, 'hf_quant_config.json'), inOwnFile);
  await writeJson(join(directory, 'generation_config.json'), { bos_token_id: 0, eos_token_id: 1, do_sample: false });
  if (model.tokenizerFrom !== undefined) {
    for (const file of ['tokenizer.json', 'tokenizer_config.json']) await copyFile(join(model.tokenizerFrom, file), join(directory, file));
  }
  return { directory, numTensors: tensors.length, weightBytes, shards: names };
}

/** In the order given; a shard ends before it would pass the limit. */
function splitIntoShards(tensors: readonly ModuleTensor[], maxBytes: number): ModuleTensor[][] {
  const shards: ModuleTensor[][] = [];
  let bytes = Infinity;
  for (const tensor of tensors) {
    if (bytes + tensor.byteLength > maxBytes) {
      shards.push([]);
      bytes = 0;
    }
    shards.at(-1)?.push(tensor);
    bytes += tensor.byteLength;
  }
  return shards;
}

const fileDTypes: Readonly<Partial<Record<DType, string>>> = { bf16: 'BF16', f32: 'F32', f8e4m3: 'F8_E4M3', u8: 'U8' };

/** Bytes of one write; a multiple of every element size. */
const pieceBytes = 4 * 2 ** 20;

async function writeShard(path: string, tensors: readonly ModuleTensor[], random: Random): Promise<void> {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  let end = 0;
  for (const { name, dtype, shape, byteLength } of tensors) {
    header[name] = { dtype: fileDTypes[dtype], shape, data_offsets: [end, end + byteLength] };
    end += byteLength;
  }
  const json = Buffer.from(JSON.stringify(header));
  // Padded with spaces, so that the data begins at a multiple of eight bytes, as the format asks.
  const padded = Buffer.alloc(Math.ceil(json.length / 8) * 8, ' ');
  json.copy(padded);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  const file = await open(path, 'w');
  try {
    await file.writeFile(Buffer.concat([length, padded]));
    await writeTensors(file, tensors, random);
  } finally {
    await file.close();
  }
}

/** Small tensors are gathered into pieces; large ones are made piece by piece. */
async function writeTensors(file: FileHandle, tensors: readonly ModuleTensor[], random: Random): Promise<void> {
  const piece = new Uint8Array(pieceBytes);
  let used = 0;
  for (const { byteLength, fill } of tensors) {
    for (let done = 0; done < byteLength;) {
      // Elements of up to four bytes: pieces of a tensor begin where a word does, whatever was gathered before.
      const start = Math.ceil(used / 4) * 4;
      const isAligned = start === used;
      const room = pieceBytes - start;
      if (!isAligned || room === 0) {
        await file.writeFile(piece.subarray(0, used));
        used = 0;
        continue;
      }
      const count = Math.min(byteLength - done, room);
      fill(piece.subarray(used, used + count), random);
      used += count;
      done += count;
    }
  }
  if (used > 0) await file.writeFile(piece.subarray(0, used));
}

async function writeJson(path: string, value: unknown): Promise<void> {
  await writeFile(path, `${JSON.stringify(value, null, 2)}\n`);
}
