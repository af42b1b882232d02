import { readdir, readFile, rm, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect } from 'chai';
import type { ExpertWeights, LinearWeights, MoeBackend } from '../../src/backend.js';
import { Checkpoint } from '../../src/checkpoint/checkpoint.js';
import { describeModel } from '../../src/checkpoint/describe-model.js';
import { openExpertWeights } from '../../src/checkpoint/expert-weights.js';
import { openLinearWeights } from '../../src/checkpoint/linear-weights.js';
import { createReferenceLinearBackend, createReferenceMoeBackend } from '../../src/conformance/index.js';
import { createHooks } from '../../src/hooks.js';
import { eraseLinearBackend, eraseMoeBackend } from '../../src/oracle/erased-backend.js';
import { plan } from '../../src/oracle/plan.js';
import { prepareExperts, prepareLinear } from '../../src/oracle/prepare.js';
import { openPackedCache } from '../../src/packed-cache/packed-cache.js';
import type { PackedCacheCounts } from '../../src/packed-cache/packed-cache.js';
import { silentLogger } from '../../src/tokens.js';
import { KernelVerification } from '../../src/verification/kernel-verification.js';
import { verifiedInMemory } from '../../src/verification/verified-kernels.js';
import { withFolder, writeConfig, writeSafetensors } from '../checkpoint/checkpoint-writer.js';
import { tinyQwen3Moe } from '../checkpoint/tiny-models.js';

const device = { type: 'cpu', name: 'any CPU', architecture: 'other', features: [], numThreads: 1, memoryBytes: undefined } as const;

interface StartOptions {
  readonly version?: string;
  readonly backend?: MoeBackend;
  readonly verification?: KernelVerification;
}

interface Started {
  readonly numReads: number;
  readonly counts: PackedCacheCounts;
  readonly messages: readonly string[];
  /** What the kernels of the first group and the first linear compute. */
  readonly outputs: readonly Float32Array[];
}

/** Prepares the first expert group and the first linear of a model folder, as a start does. */
async function start(folder: string, cache: string, { version = '1', backend, verification }: StartOptions = {}): Promise<Started> {
  const checkpoint = await Checkpoint.open(folder);
  const messages: string[] = [];
  const say = (_fields: unknown, message: string): void => void messages.push(message);
  const packedCache = await openPackedCache({
    directory: cache,
    checkpoint,
    plugins: [{ name: 'reference', version }],
    logger: { ...silentLogger, info: say, warn: say },
  });
  const host = {
    moeBackends: [eraseMoeBackend(backend ?? createReferenceMoeBackend(), 'reference')],
    linearBackends: [eraseLinearBackend(createReferenceLinearBackend(), 'reference')],
    hooks: createHooks(silentLogger),
  };
  const { groups, linears } = describeModel(checkpoint);
  const [group, linear] = [groups[0] ?? expect.fail(), linears[0] ?? expect.fail()];
  const { layers } = plan({ layers: [group, linear], device, maxNumTokens: 4, ...host });
  let numReads = 0;
  const experts = openExpertWeights(checkpoint, group);
  const countedExperts: ExpertWeights = { ...experts, expert: (slot, into) => (numReads++, experts.expert(slot, into)) };
  const modules = openLinearWeights(checkpoint, linear);
  const countedModules: LinearWeights = { ...modules, module: (index, into) => (numReads++, modules.module(index, into)) };
  const context = { device, maxNumTokens: 4, packedCache, ...(verification === undefined ? {} : { verification }) };
  const prepared = [
    await prepareExperts(host, layers[0] ?? expect.fail(), group, countedExperts, context),
    await prepareLinear(host, layers[1] ?? expect.fail(), linear, countedModules, context),
  ];
  const outputs = prepared.map(({ kernel: { entry } }) => {
    const common = { numTokens: 1, accumulate: false };
    if (entry.type === 'js-experts') {
      const output = new Float32Array(group.hiddenSize);
      entry.run({
        ...common,
        topK: 1,
        hiddenStates: output.map((_, i) => i),
        topkSlots: Int32Array.of(1),
        topkWeights: Float32Array.of(1),
        output,
      });
      return output;
    }
    const output = new Float32Array(linear.outFeatures);
    if (entry.type === 'js-linear') entry.run({ ...common, input: new Float32Array(linear.inFeatures).map((_, i) => i), output });
    return output;
  });
  await checkpoint.close();
  return { numReads, counts: packedCache.counts(), messages, outputs };
}

describe('openPackedCache', () => {
  /** A model of four expert and module reads, and a cache folder that is not there yet. */
  const withModel = (use: (model: string, cache: string) => Promise<void>): Promise<void> =>
    withFolder(async (folder) => {
      const { config, tensors } = tinyQwen3Moe();
      await writeConfig(folder, config);
      await writeSafetensors(join(folder, 'model.safetensors'), tensors);
      await use(folder, join(folder, 'cache', 'packed'));
    });

  it('restores what an earlier start packed, reading nothing of the checkpoint, and computes the same bits', () =>
    withModel(async (model, cache) => {
      const first = await start(model, cache);
      expect(first.numReads).to.be.above(2);
      expect(first.counts).to.include({ numRestored: 0, numSaved: 2 });
      const second = await start(model, cache);
      expect(second.numReads).to.equal(0);
      expect(second.counts).to.include({ numRestored: 2, numSaved: 0 });
      expect(second.outputs).to.deep.equal(first.outputs);
      expect(second.messages).to.deep.equal([]);
      expect(first.outputs.some((output) => output.some((value) => value !== 0))).to.equal(true);
    }));

  for (const [what, change] of [
    [
      'the weights',
      async (model: string): Promise<StartOptions> => {
        const file = join(model, 'model.safetensors');
        const bytes = await readFile(file);
        bytes[bytes.length - 1]! ^= 1;
        await writeFile(file, bytes);
        // Archives give files the same times.
        await utimes(file, 0, 0);
        return {};
      },
    ],
    ['the version of the plugin', (): Promise<StartOptions> => Promise.resolve({ version: '2' })],
  ] as const) {
    it(`packs anew, in place of the old file, after ${what} changed`, () =>
      withModel(async (model, cache) => {
        await utimes(join(model, 'model.safetensors'), 0, 0);
        const first = await start(model, cache);
        const files = await readdir(first.counts.directory);
        const options = await change(model);
        const second = await start(model, cache, options);
        expect(second.counts).to.include({ numRestored: 0, numSaved: 2 });
        expect(second.messages.filter((message) => message.includes('another state'))).to.have.length(2);
        expect(await readdir(second.counts.directory)).to.deep.equal(files);
        expect((await start(model, cache, options)).counts).to.include({ numRestored: 2 });
      }));
  }

  it('packs anew, with a warning, what is damaged, and restores the rest', () =>
    withModel(async (model, cache) => {
      const first = await start(model, cache);
      const experts = (await readdir(first.counts.directory)).find((name) => name.includes('experts')) ?? expect.fail();
      const file = join(first.counts.directory, experts);
      const bytes = await readFile(file);
      bytes[5000]! ^= 1;
      await writeFile(file, bytes);
      const second = await start(model, cache);
      expect(second.counts).to.include({ numRestored: 1, numSaved: 1 });
      expect(second.messages).to.deep.equal(['a file of packed weights cannot be used; they are packed anew']);
      expect(second.outputs).to.deep.equal(first.outputs);
      expect((await start(model, cache)).counts).to.include({ numRestored: 2 });
    }));

  it('warns once when every file is damaged', () =>
    withModel(async (model, cache) => {
      const { directory } = (await start(model, cache)).counts;
      for (const name of await readdir(directory)) await writeFile(join(directory, name), 'x');
      const { counts, messages } = await start(model, cache);
      expect(counts).to.include({ numRestored: 0, numSaved: 2 });
      expect(messages).to.have.length(1);
    }));

  it('serves without a place to write, warning once', () =>
    withModel(async (model) => {
      const file = join(model, 'file');
      await writeFile(file, '');
      const { counts, messages, numReads } = await start(model, join(file, 'cache'));
      expect(numReads).to.be.above(2);
      expect(counts).to.include({ numRestored: 0, numSaved: 0 });
      expect(messages.filter((message) => message.includes('cannot be kept'))).to.have.length(1);
    }));

  it('packs when a kernel has to be checked, and for backends that store nothing', () =>
    withModel(async (model, cache) => {
      await start(model, cache);
      const runner = { runExperts: () => expect.fail(), runLinear: () => expect.fail() };
      const verification = new KernelVerification({ runner, device, plugins: [], verified: verifiedInMemory() });
      const thrown: unknown = await start(model, cache, { verification }).catch((error: unknown) => error);
      // The runner was called: the weights had been sampled, so read.
      expect(thrown).to.include({ code: 'MOE_DEVICE_KERNEL' });
      const backend = createReferenceMoeBackend();
      Reflect.deleteProperty(backend, 'storage');
      const { counts, numReads } = await start(model, cache, { backend });
      expect(counts).to.include({ numRestored: 1, numSaved: 0 });
      expect(numReads).to.equal(2);
    }));

  it('keeps starts apart that write at the same time', () =>
    withModel(async (model, cache) => {
      const started = await Promise.all([1, 2, 3].map(() => start(model, cache)));
      for (const { outputs, messages } of started) {
        expect(outputs).to.deep.equal(started[0]?.outputs);
        expect(messages).to.deep.equal([]);
      }
      expect((await start(model, cache)).counts).to.include({ numRestored: 2 });
    }));

  it('removes drafts of starts that died, and no others', () =>
    withModel(async (model, cache) => {
      const { directory } = (await start(model, cache)).counts;
      for (const name of ['old.packed.1-1.tmp', 'new.packed.2-1.tmp']) await writeFile(join(directory, name), 'x');
      const hourAgo = Date.now() / 1000 - 3600;
      await utimes(join(directory, 'old.packed.1-1.tmp'), hourAgo, hourAgo);
      await start(model, cache);
      expect((await readdir(directory)).filter((name) => name.endsWith('.tmp'))).to.deep.equal(['new.packed.2-1.tmp']);
      await rm(directory, { recursive: true });
      expect((await start(model, cache)).counts).to.include({ numRestored: 0, numSaved: 2 });
    }));
});
