import { mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A tensor to write. Without `bytes` its data are zeros, which a sparse file does not store. */
export interface TensorToWrite {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes?: Uint8Array;
}

const bytesPerElement: Readonly<Record<string, number>> = { F32: 4, I32: 4, BF16: 2, F16: 2, F8_E4M3: 1, F8_E8M0: 1, U8: 1, I8: 1, I64: 8 };

/** Runs `use` in a temporary folder that is gone afterwards. */
export async function withFolder<T>(use: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'moe-checkpoint-'));
  try {
    return await use(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** Header of a safetensors file, tensors one behind the other in the order given. */
export function headerOf(tensors: Readonly<Record<string, TensorToWrite>>): {
  readonly header: Record<string, unknown>;
  readonly dataBytes: number;
} {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  let at = 0;
  for (const [name, { dtype, shape }] of Object.entries(tensors)) {
    const end = at + shape.reduce((product, size) => product * size, bytesPerElement[dtype]!);
    header[name] = { dtype, shape, data_offsets: [at, end] };
    at = end;
  }
  return { header, dataBytes: at };
}

/** Eight bytes of length, then the text. */
export function frame(headerText: string | Uint8Array): Buffer {
  const text = Buffer.from(headerText as string);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text]);
}

/** Writes a safetensors file. */
export async function writeSafetensors(file: string, tensors: Readonly<Record<string, TensorToWrite>>): Promise<void> {
  const { header, dataBytes } = headerOf(tensors);
  const start = frame(JSON.stringify(header));
  const handle = await open(file, 'w');
  try {
    await handle.write(start);
    await handle.truncate(start.length + dataBytes);
    for (const [name, { bytes }] of Object.entries(tensors)) {
      const { data_offsets: offsets } = header[name] as { readonly data_offsets: readonly [number, number] };
      if (bytes !== undefined) await handle.write(bytes, 0, bytes.length, start.length + offsets[0]);
    }
  } finally {
    await handle.close();
  }
}

/** Writes config.json. */
export async function writeConfig(folder: string, config: Readonly<Record<string, unknown>>): Promise<void> {
  await writeFile(join(folder, 'config.json'), JSON.stringify(config));
}
