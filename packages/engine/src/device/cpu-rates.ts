import type { DotType } from '@moe-server/core';
import { loadCpuAddon } from './cpu-addon.js';
import { outOfMemory } from './cpu-memory.js';

/** What a processor can do at most with so many threads: the two numbers that bound every kernel. */
export interface CpuRates {
  readonly numThreads: number;
  /** GB/s (1e9 bytes) of reading random pieces, as chosen experts are read. */
  readonly bandwidth: number;
  /** Gop/s (1e9; a product and its sum are two) from registers, by what is multiplied; undefined = the processor has no instruction for it. */
  readonly dots: Readonly<Record<DotType, number | undefined>>;
}

/** About the size of one expert. */
const pieceBytes = 1.5 * 2 ** 20;
/** More than any cache holds. */
const totalBytes = 2 ** 30;

/**
 * Memory bandwidth in GB/s (1e9 bytes): random pieces of a buffer, each read in order and shared by the threads, as the weights of
 * chosen experts are. Median of five passes. By default pieces of 1.5 MiB of a GiB.
 *
 * @throws {MoeError} MOE_DEVICE_MEMORY when there is no room for the buffer, MOE_PLUGIN_ADDON without native code.
 */
export async function measureBandwidth(options: {
  readonly numThreads: number;
  readonly totalBytes?: number;
  readonly pieceBytes?: number;
}): Promise<number> {
  const wanted = { totalBytes, pieceBytes, ...options };
  const rate = await loadCpuAddon().measureBandwidth(wanted.numThreads, wanted.totalBytes, wanted.pieceBytes);
  if (rate === 0) throw outOfMemory('measuring bandwidth', wanted.totalBytes, undefined);
  return rate / 1e9;
}

/**
 * Bandwidth and dot products; takes about a second, in which nothing else should compute.
 *
 * @throws {MoeError} as {@link measureBandwidth}.
 */
export async function measureCpuRates({ numThreads }: { readonly numThreads: number }): Promise<CpuRates> {
  const bandwidth = await measureBandwidth({ numThreads });
  const dot = async (type: DotType): Promise<number | undefined> => {
    const rate = await loadCpuAddon().measureDotRate(numThreads, type);
    return rate === 0 ? undefined : rate / 1e9;
  };
  return { numThreads, bandwidth, dots: { int8: await dot('int8'), bf16: await dot('bf16'), f32: await dot('f32') } };
}

/** Gop/s for products of a type; where the processor has no instruction for it, a kernel multiplies float32. */
export function dotRate({ dots }: CpuRates, type: DotType): number {
  return dots[type] ?? dots.f32 ?? 0;
}

/** One line for people: `2 threads: random 1.5 MiB pieces 33.1 GB/s, dot products int8 930, bf16 465, f32 232 Gop/s`. */
export function describeCpuRates({ numThreads, bandwidth, dots }: CpuRates): string {
  const products = (['int8', 'bf16', 'f32'] as const).flatMap((type) =>
    dots[type] === undefined ? [] : [`${type} ${dots[type].toFixed(0)}`],
  );
  const threads = numThreads === 1 ? '1 thread' : `${String(numThreads)} threads`;
  return `${threads}: random 1.5 MiB pieces ${bandwidth.toFixed(1)} GB/s, dot products ${products.join(', ')} Gop/s`;
}
