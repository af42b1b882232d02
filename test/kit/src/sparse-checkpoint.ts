import { mkdir, open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/** A tensor of which only the header is written. */
export interface SparseTensor {
  readonly name: string;
  /** As safetensors files name it. */
  readonly dtype: keyof typeof bytesPerElement;
  readonly shape: readonly number[];
}

/** What {@link writeSparseCheckpoint} writes: a model in its real sizes, without weights. */
export interface SparseModel {
  readonly config: Readonly<Record<string, unknown>>;
  readonly tensors: readonly SparseTensor[];
  readonly numShards: number;
}

const bytesPerElement = { F32: 4, BF16: 2, F8_E4M3: 1, U8: 1 } as const;
const lengthBytes = 8;

/**
 * Writes config.json, the index and shards of which only the headers take disk: the files end where the weights would, and what was never
 * written reads as zeros.
 *
 * @param directory - made where it is missing.
 * @returns the bytes of all tensors.
 */
export async function writeSparseCheckpoint(directory: string, { config, tensors, numShards }: SparseModel): Promise<number> {
  await mkdir(directory, { recursive: true });
  await writeFile(join(directory, 'config.json'), JSON.stringify(config));
  const perShard = Math.ceil(tensors.length / numShards);
  const weightMap: Record<string, string> = {};
  let totalBytes = 0;
  for (let shard = 0; shard < numShards; shard++) {
    const file = `model-${number(shard + 1)}-of-${number(numShards)}.safetensors`;
    const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
    let dataBytes = 0;
    for (const { name, dtype, shape } of tensors.slice(shard * perShard, (shard + 1) * perShard)) {
      const end = dataBytes + shape.reduce((product, size) => product * size, bytesPerElement[dtype]);
      header[name] = { dtype, shape, data_offsets: [dataBytes, end] };
      weightMap[name] = file;
      dataBytes = end;
    }
    const text = Buffer.from(JSON.stringify(header));
    const length = Buffer.alloc(lengthBytes);
    length.writeBigUInt64LE(BigInt(text.length));
    const handle = await open(join(directory, file), 'w');
    try {
      await handle.write(Buffer.concat([length, text]));
      await handle.truncate(lengthBytes + text.length + dataBytes);
    } finally {
      await handle.close();
    }
    totalBytes += dataBytes;
  }
  const index = { metadata: { total_size: totalBytes }, weight_map: weightMap };
  await writeFile(join(directory, 'model.safetensors.index.json'), JSON.stringify(index));
  return totalBytes;
}

function number(value: number): string {
  return String(value).padStart(5, '0');
}
