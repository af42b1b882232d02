import { createHash } from 'node:crypto';
import type { ShardFile } from './shard-file.js';

/** Pieces of a file that are looked at, evenly spread, the last bytes among them. */
const numProbes = 16;
const probeBytes = 4096;

/**
 * Tells the states of a checkpoint apart without reading it whole: names, sizes and times of its files of weights, and of each the header and sixteen
 * pieces of 4 KiB. Times alone do not do (archives and images set them all to one), nor do headers (those of two fine-tunings are equal); weights that
 * differ nearly nowhere and were given the time of the others would pass. Copies that keep their times have the same identity.
 *
 * @returns a SHA-256, hex.
 * @throws {MoeError} MOE_CHECKPOINT_READ
 */
export async function checkpointIdentity(shards: Iterable<ShardFile>): Promise<string> {
  const hash = createHash('sha256');
  for (const shard of shards) {
    const { name, size, modifiedMs } = shard;
    hash.update(JSON.stringify([name, size, modifiedMs]));
    const headerBytes = 8 + Number(new DataView((await shard.read(0, 8)).buffer).getBigUint64(0, true));
    hash.update(await shard.read(0, headerBytes));
    for (let probe = 1; probe <= numProbes; probe++) {
      const end = headerBytes + Math.floor(((size - headerBytes) * probe) / numProbes);
      const begin = Math.max(headerBytes, end - probeBytes);
      hash.update(await shard.read(begin, end - begin));
    }
  }
  return hash.digest('hex');
}
