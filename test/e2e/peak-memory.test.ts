import { fork } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { formatBytes } from '@moe-server/core';
import { writeCheckpoint } from '@moe-server/core/conformance';
import { pocketDictionary } from '@moe-server/test-kit';
import { expect } from 'chai';
import type { EngineSettings } from 'moe-server';
import type { PeakMemoryReport } from './peak-memory-process.js';
import { nativeProblem } from './server-process.js';

const child = fileURLToPath(new URL('peak-memory-process.js', import.meta.url));
const cacheBytes = 32 * 2 ** 20;

async function measure(settings: EngineSettings): Promise<PeakMemoryReport> {
  const full = { threads: 2, plugins: false, maxModelLen: 1024, kvCacheMemoryBytes: cacheBytes, ...settings } satisfies EngineSettings;
  return new Promise((resolve, reject) => {
    const process = fork(child, [JSON.stringify(full)]);
    process.once('message', (report) => {
      resolve(report as PeakMemoryReport);
    });
    process.once('exit', (status) => {
      reject(new Error(`the process ended with ${String(status)} before it reported`));
    });
  });
}

/** At most 1.15 times the packed weights, the KV cache and 250 MB. */
function expectWithinPromise({ peakBytes, weightBytes, kvCacheBytes }: PeakMemoryReport): void {
  const promised = 1.15 * weightBytes + kvCacheBytes + 250e6;
  expect(peakBytes, `weights ${formatBytes(weightBytes)}, KV cache ${formatBytes(kvCacheBytes)}`).to.be.at.most(promised);
  // What was measured is a process that holds the weights.
  expect(peakBytes).to.be.above(weightBytes);
}

describe('peak memory of a start', function () {
  this.timeout(120_000);
  let folder: string;
  before(async function () {
    if ((await nativeProblem()) !== undefined) this.skip();
    folder = mkdtempSync(join(tmpdir(), 'moe-memory-'));
    // Some 300 MB: large enough that two copies of the experts, or of the embedding and the head, would break the promise.
    await writeCheckpoint(join(folder, 'model'), {
      hiddenSize: 1024,
      numLayers: 3,
      numExperts: 64,
      topK: 8,
      moeIntermediateSize: 512,
      numHeads: 16,
      numKvHeads: 4,
      headDim: 64,
      vocabSize: 32_000,
      experts: (layer) => (layer === 2 ? 'fp8.tensor.static' : 'nvfp4.w4a4'),
      attention: 'fp8.tensor.static',
    });
  });
  after(() => {
    rmSync(folder, { recursive: true, force: true });
  });

  it('is 1.15 times the packed weights, the KV cache and 250 MB at most', async () => {
    const report = await measure({ model: join(folder, 'model') });
    expect(report.weightBytes).to.be.above(300e6);
    expectWithinPromise(report);
  });

  it('is that too when packed weights are written to disk, and when they are read from there', async () => {
    const settings = { model: join(folder, 'model'), cacheDir: join(folder, 'cache'), packedWeightsCache: true };
    expectWithinPromise(await measure(settings));
    expectWithinPromise(await measure(settings));
  });

  it('is that for the bundled model', async () => {
    expectWithinPromise(await measure({ model: pocketDictionary }));
  });
});
