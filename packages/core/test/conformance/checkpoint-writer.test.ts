import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pocketDictionary, readSafetensors } from '@moe-server/test-kit';
import { expect } from 'chai';
import { Checkpoint } from '../../src/checkpoint/checkpoint.js';
import { describeModel } from '../../src/checkpoint/describe-model.js';
import { openExpertWeights } from '../../src/checkpoint/expert-weights.js';
import { writeCheckpoint } from '../../src/conformance/index.js';
import type { SyntheticModel } from '../../src/conformance/index.js';
import { decodeWeights } from '../../src/quant/decode-weights.js';

const tiny: SyntheticModel = {
  hiddenSize: 64,
  numLayers: 2,
  numExperts: 4,
  topK: 2,
  moeIntermediateSize: 48,
  numHeads: 2,
  numKvHeads: 1,
  headDim: 32,
  vocabSize: 100,
  experts: 'nvfp4.w4a4',
};

describe('writeCheckpoint', () => {
  let directory: string;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'moe-checkpoint-'));
  });
  afterEach(async () => {
    await rm(directory, { recursive: true });
  });

  it('writes what the checkpoint reader describes as the model that was asked for', async () => {
    await writeCheckpoint(directory, {
      ...tiny,
      experts: (layer) => (layer === 0 ? 'nvfp4.w4a4' : 'fp8.tensor.static'),
      attention: 'fp8.tensor.static',
      fp8KvCache: true,
    });
    const checkpoint = await Checkpoint.open(directory);
    try {
      const { architecture, groups, linears, kvCacheScheme } = describeModel(checkpoint);
      expect(architecture).to.equal('Qwen3MoeForCausalLM');
      expect(kvCacheScheme).to.equal('fp8');
      expect(
        groups.map(({ schemes, hiddenSize, moeIntermediateSize, numExperts, topK }) => [
          schemes.w13,
          schemes.w2,
          hiddenSize,
          moeIntermediateSize,
          numExperts,
          topK,
        ]),
      ).to.deep.equal([
        ['nvfp4.w4a4', 'nvfp4.w4a4', 64, 48, 4, 2],
        ['fp8.tensor.static', 'fp8.tensor.static', 64, 48, 4, 2],
      ]);
      expect(new Set(linears.map(({ name, scheme }) => `${name.replace(/\d+/, 'N')}: ${scheme}`))).to.deep.equal(
        new Set([
          'model.layers.N.self_attn.qkv_proj: fp8.tensor.static',
          'model.layers.N.self_attn.o_proj: fp8.tensor.static',
          'lm_head: bf16',
        ]),
      );
    } finally {
      await checkpoint.close();
    }
  });

  for (const scheme of ['nvfp4.w4a4', 'nvfp4.w4a16', 'fp8.tensor.static', 'bf16'] as const) {
    it(`gives ${scheme} experts a root mean square of about 1/sqrt(columns)`, async () => {
      await writeCheckpoint(directory, { ...tiny, experts: scheme });
      const checkpoint = await Checkpoint.open(directory);
      try {
        const [group] = describeModel(checkpoint).groups;
        if (group === undefined) throw new Error('the checkpoint has no expert group');
        const { gate, down } = await openExpertWeights(checkpoint, group).expert(1);
        for (const matrix of [gate, down]) {
          const values = decodeWeights(matrix);
          const rms = Math.sqrt(values.reduce((sum, value) => sum + value ** 2, 0) / values.length);
          expect(rms * Math.sqrt(matrix.columns)).to.be.within(0.7, 1.4);
        }
      } finally {
        await checkpoint.close();
      }
    });
  }

  it('splits the weights into shards with an index that finds every tensor', async () => {
    const { shards, numTensors } = await writeCheckpoint(directory, { ...tiny, maxShardBytes: 30_000 });
    expect(shards.length).to.be.greaterThan(2);
    const index = JSON.parse(await readFile(join(directory, 'model.safetensors.index.json'), 'utf8')) as {
      weight_map: Record<string, string>;
    };
    expect(Object.keys(index.weight_map)).to.have.length(numTensors);
    for (const shard of shards) {
      const names = [...readSafetensors(join(directory, shard)).keys()];
      expect(names.every((name) => index.weight_map[name] === shard)).to.equal(true);
    }
  });

  it('writes the same bytes for the same seed, others for another', async () => {
    const file = join(directory, 'model.safetensors');
    await writeCheckpoint(directory, { ...tiny, seed: 5 });
    const first = await readFile(file);
    await writeCheckpoint(directory, { ...tiny, seed: 5 });
    expect(first.equals(await readFile(file))).to.equal(true);
    await writeCheckpoint(directory, { ...tiny, seed: 6 });
    expect(first.equals(await readFile(file))).to.equal(false);
  });

  it('copies a tokenizer', async () => {
    await writeCheckpoint(directory, { ...tiny, tokenizerFrom: pocketDictionary });
    const [copy, original] = await Promise.all([directory, pocketDictionary].map((folder) => readFile(join(folder, 'tokenizer.json'))));
    expect(copy?.equals(original ?? Buffer.alloc(0))).to.equal(true);
  });
});
