import { basename } from 'node:path';
import { deepseekV3, fixtureFolders, writeSparseCheckpoint } from '@moe-server/test-kit';
import { expect } from 'chai';
import { Checkpoint } from '../../src/checkpoint/checkpoint.js';
import { describeModel, type ModelDescription } from '../../src/checkpoint/describe-model.js';
import { openExpertWeights } from '../../src/checkpoint/expert-weights.js';
import { openLinearWeights } from '../../src/checkpoint/linear-weights.js';
import { Partition } from '../../src/checkpoint/partition.js';
import { isMoeError, type MoeError } from '../../src/errors.js';
import { singleRank, type LinearSpec, type ParallelPlacement } from '../../src/layer-spec.js';
import { withFolder } from './checkpoint-writer.js';
import { tinyQwen3Moe, withCheckpoint } from './tiny-models.js';

const tensorParallel = (tpSize: number, tpRank = 0): ParallelPlacement => ({ ...singleRank, tpRank, tpSize });
const expertParallel = (epSize: number, epRank = 0): ParallelPlacement => ({ ...singleRank, epRank, epSize });

function refusalOf(run: () => unknown): MoeError {
  try {
    run();
  } catch (error) {
    if (isMoeError(error)) return error;
    throw error;
  }
  throw new Error('nothing was refused');
}

async function describeFolder(folder: string, parallel: ParallelPlacement): Promise<ModelDescription> {
  const checkpoint = await Checkpoint.open(folder);
  try {
    return describeModel(checkpoint, { parallel });
  } finally {
    await checkpoint.close();
  }
}

function linearOf({ linears }: ModelDescription, suffix: string): LinearSpec {
  return linears.find(({ name }) => name.endsWith(suffix)) ?? expect.fail(suffix);
}

describe('Partition', () => {
  it('gives the first ranks one expert more where the number does not divide, and every expert once', () => {
    const owned = [0, 1, 2].map((rank) => new Partition(expertParallel(3, rank)).ownExperts(8));
    expect(owned).to.deep.equal([
      { first: 0, end: 3 },
      { first: 3, end: 6 },
      { first: 6, end: 8 },
    ]);
  });

  it('refuses more ranks than experts, and ranks that there are not', () => {
    expect(refusalOf(() => new Partition(expertParallel(16)).ownExperts(8))).to.include({
      code: 'MOE_UNSUPPORTED_PARALLEL',
      message: 'Expert parallel size 16 leaves ranks without experts: a layer has 8. Use at most 8.',
    });
    for (const [rank, size] of [
      [2, 2],
      [-1, 2],
      [0, 0],
      [0, 1.5],
    ] as const) {
      expect(refusalOf(() => new Partition(tensorParallel(size, rank))).message).to.equal(
        `There is no tensor parallel rank ${rank} of ${size}; ranks count from 0, sizes from 1.`,
      );
    }
  });

  it('keeps key-value heads on several ranks rather than cut one', () => {
    const share = (tpSize: number) =>
      new Partition(tensorParallel(tpSize)).shareOfLinear(4 * 128, { field: 'num_key_value_heads', count: 4, mayRepeat: true });
    expect([1, 2, 4, 8, 16].map(share)).to.deep.equal([512, 256, 128, 128, 128]);
  });

  it('names all sizes that do not divide, and the nearest that would do', () => {
    const partition = new Partition(tensorParallel(6));
    partition.shareOfLinear(4096, { field: 'num_attention_heads', count: 32 });
    partition.shareOfLinear(512, { field: 'num_key_value_heads', count: 4, mayRepeat: true });
    partition.shareOfExpert(1280, 'moe_intermediate_size');
    partition.shareOfLinear(6 * 128, { field: 'linear_num_key_heads', count: 6 });
    expect(
      refusalOf(() => {
        partition.check();
      }).message,
    ).to.equal(
      'Tensor parallel size 6 does not divide num_attention_heads = 32, num_key_value_heads = 4, moe_intermediate_size = 1280; 2 would do.',
    );
  });
});

describe('describeModel over several ranks', () => {
  it('cuts heads, dense layers, experts and the vocabulary by tensor parallel', () =>
    withCheckpoint(tinyQwen3Moe(), (checkpoint) => {
      const model = describeModel(checkpoint, { parallel: tensorParallel(2, 1) });
      expect(model.groups[0]).to.deep.include({ hiddenSize: 64, moeIntermediateSize: 16, experts: [0, 1], parallel: tensorParallel(2, 1) });
      expect(linearOf(model, 'qkv_proj')).to.deep.include({ inFeatures: 64, outFeatures: 64 + 32 + 32, cut: 'outFeatures' });
      expect(linearOf(model, 'o_proj')).to.deep.include({
        inFeatures: 64,
        outFeatures: 64,
        cut: 'inFeatures',
        parallel: tensorParallel(2, 1),
      });
      expect(linearOf(model, 'lm_head')).to.deep.include({ inFeatures: 64, outFeatures: 8, cut: 'outFeatures' });
    }));

  it('repeats key-value heads where there are more ranks than those', () =>
    withCheckpoint(tinyQwen3Moe(), (checkpoint) => {
      const { modules } = linearOf(describeModel(checkpoint, { parallel: tensorParallel(4) }), 'qkv_proj');
      expect(modules.map(({ outFeatures }) => outFeatures)).to.deep.equal([32, 32, 32]);
    }));

  it('spreads whole experts by expert parallel, whatever tensor parallel does to the rest', () =>
    withCheckpoint(tinyQwen3Moe(), (checkpoint) => {
      const model = describeModel(checkpoint, { parallel: { tpRank: 1, tpSize: 2, epRank: 1, epSize: 2 } });
      expect(model.groups[0]).to.deep.include({ moeIntermediateSize: 32, numExperts: 2, experts: [1], parallel: expertParallel(2, 1) });
      expect(linearOf(model, 'o_proj')).to.deep.include({ inFeatures: 64, parallel: tensorParallel(2, 1) });
    }));

  it('leaves out a group of which the rank has no expert, and keeps its name where it has', () =>
    withCheckpoint(
      tinyQwen3Moe((module) => (module.includes('experts.1.') ? 'fp8-channel' : 'bf16')),
      (checkpoint) => {
        // tinyQwen3Moe has no quantization config; a scheme per expert needs one.
        const config = checkpoint.config as Record<string, unknown>;
        config.quantization_config = {
          quant_method: 'compressed-tensors',
          format: 'float-quantized',
          ignore: [],
          config_groups: {
            fp8: {
              targets: ['re:.*experts\\.1\\..*'],
              weights: { num_bits: 8, type: 'float', strategy: 'channel', symmetric: true, dynamic: false },
              input_activations: { num_bits: 8, type: 'float', strategy: 'token', symmetric: true, dynamic: true },
            },
          },
        };
        const names = (parallel: ParallelPlacement) =>
          describeModel(checkpoint, { parallel }).groups.map(({ name, experts }) => [name, experts]);
        const base = 'model.layers.0.mlp.experts';
        expect(names(singleRank)).to.deep.equal([
          [`${base}#bf16`, [0]],
          [`${base}#fp8.channel`, [1]],
        ]);
        expect(names(expertParallel(2, 1))).to.deep.equal([[`${base}#fp8.channel`, [1]]]);
      },
    ));

  it('refuses sizes that do not divide, in one error', () =>
    withCheckpoint(tinyQwen3Moe(), (checkpoint) => {
      const error = refusalOf(() => describeModel(checkpoint, { parallel: tensorParallel(3) }));
      expect(error.code).to.equal('MOE_UNSUPPORTED_PARALLEL');
      expect(error.message).to.equal(
        'Tensor parallel size 3 does not divide num_attention_heads = 4, num_key_value_heads = 2, moe_intermediate_size = 32, vocab_size = 16; 2 or 4 would do.',
      );
    }));

  it('is planned only: the weights of a split layer are refused by name', () =>
    withCheckpoint(tinyQwen3Moe(), (checkpoint) => {
      for (const parallel of [tensorParallel(2), expertParallel(2)]) {
        const { groups } = describeModel(checkpoint, { parallel });
        const error = refusalOf(() => openExpertWeights(checkpoint, groups[0] ?? expect.fail()));
        expect(error).to.have.property('code', 'MOE_UNSUPPORTED_PARALLEL');
        expect(error.message).to.match(/^model\.layers\.0\.mlp\.experts is planned for .*Use 1 and 1 to serve it\.$/);
      }
      const { linears } = describeModel(checkpoint, { parallel: tensorParallel(2) });
      expect(refusalOf(() => openLinearWeights(checkpoint, linears[0] ?? expect.fail())).code).to.equal('MOE_UNSUPPORTED_PARALLEL');
    }));

  for (const folder of fixtureFolders()) {
    const name = basename(folder);
    it(`gives the ranks of ${name} shares that make the whole`, async () => {
      const whole = await describeFolder(folder, singleRank);
      const ranks = await Promise.all([0, 1].map(async (rank) => describeFolder(folder, tensorParallel(2, rank))));
      for (const [index, spec] of whole.linears.entries()) {
        const shares = ranks.map(({ linears }) => linears[index] ?? expect.fail());
        expect(shares.map((share) => share.name)).to.deep.equal([spec.name, spec.name]);
        const sum = (key: 'inFeatures' | 'outFeatures') => (shares[0]?.cut === key ? 2 : 1) * (shares[0]?.[key] ?? 0);
        expect(sum('inFeatures'), spec.name).to.equal(spec.inFeatures);
        expect(sum('outFeatures'), spec.name).to.equal(spec.outFeatures);
      }
      for (const [index, spec] of whole.groups.entries()) {
        for (const { groups } of ranks) {
          expect(2 * (groups[index]?.moeIntermediateSize ?? 0)).to.equal(spec.moeIntermediateSize);
          expect(groups[index]?.experts).to.deep.equal(spec.experts);
        }
      }
      const spread = await Promise.all([0, 1].map(async (rank) => describeFolder(folder, expertParallel(2, rank))));
      const ids = (models: readonly ModelDescription[]) =>
        models.flatMap(({ groups }) => groups.flatMap(({ layerIndex, experts }) => experts.map((id) => `${layerIndex} ${id}`))).sort();
      expect(ids(spread)).to.deep.equal(ids([whole]));
    });
  }

  it('leaves whole what every rank computes: the latent projections of DeepSeek-V3, the entry of its prediction head', () =>
    withFolder(async (folder) => {
      await writeSparseCheckpoint(folder, deepseekV3({ numLayers: 4, numExperts: 4 }));
      const checkpoint = await Checkpoint.open(folder);
      try {
        const model = describeModel(checkpoint, { parallel: tensorParallel(4) });
        for (const suffix of ['q_a_proj', 'kv_a_proj_with_mqa', 'eh_proj']) {
          expect(linearOf(model, suffix), suffix).to.deep.include({ parallel: singleRank }).and.not.to.have.property('cut');
        }
        expect(linearOf(model, 'kv_b_proj')).to.deep.include({ inFeatures: 512, outFeatures: (128 * 256) / 4, cut: 'outFeatures' });
        expect(linearOf(model, 'o_proj')).to.deep.include({ inFeatures: (128 * 128) / 4, outFeatures: 7168, cut: 'inFeatures' });
        expect(linearOf(model, 'shared_experts.down_proj')).to.deep.include({ inFeatures: 512, cut: 'inFeatures' });
        expect(model.groups.map(({ moeIntermediateSize }) => moeIntermediateSize)).to.deep.equal([512, 512]);
      } finally {
        await checkpoint.close();
      }
    }));
});
