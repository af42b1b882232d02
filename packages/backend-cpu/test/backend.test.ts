import type { ExpertGroupSpec, ExpertMatrices, ExpertWeights, LinearSpec, Nvfp4Weights, PackedWeights } from '@moe-server/core';
import { MoeError, SCHEME, singleRank } from '@moe-server/core';
import { expect } from 'chai';
import { CpuLinearBackend, CpuMoeBackend, expertRules, linearRules } from '../src/index.js';
import type { CpuScheme } from '../src/index.js';
import { deviceOf, RunnableMoeBackend, ruleOf, runExperts } from './device.js';

const device = deviceOf('portable');
const context = { device };
const wider = ruleOf(expertRules, 'nvfp4-wider-portable');
const same = ruleOf(expertRules, 'nvfp4-same-portable');

const group: ExpertGroupSpec = {
  kind: 'moe',
  name: 'model.layers.3.mlp.experts',
  role: 'target',
  layerIndex: 3,
  schemes: { w13: 'nvfp4.w4a4', w2: 'nvfp4.w4a4' },
  hiddenSize: 64,
  moeIntermediateSize: 32,
  numExperts: 5,
  experts: [0, 1, 2, 3, 4],
  topK: 2,
  activation: { type: 'silu' },
  hasBias: false,
  routing: {
    score: 'softmax',
    order: 'score-first',
    renormalize: true,
    numGroups: 1,
    topkGroups: 1,
    hasCorrectionBias: false,
    hasRouterBias: false,
    scalingFactor: 1,
  },
  parallel: singleRank,
};

/** Every weight is `code` times the block scale one. */
function matrix(rows: number, columns: number, changes: Partial<Nvfp4Weights<'nvfp4.w4a4'>> = {}): Nvfp4Weights<'nvfp4.w4a4'> {
  return {
    [SCHEME]: 'nvfp4.w4a4',
    rows,
    columns,
    codes: new Uint8Array((rows * columns) / 2).fill(0x22),
    blockScales: new Uint8Array((rows * columns) / 16).fill(0x38),
    globalScale: 1,
    globalScaleIs: 'factor',
    inputScale: 0.01,
    ...changes,
  };
}

function expert(changes: Partial<ExpertMatrices<'nvfp4.w4a4'>> = {}): ExpertMatrices<'nvfp4.w4a4'> {
  return { gate: matrix(32, 64), up: matrix(32, 64), down: matrix(64, 32), ...changes };
}

function weightsOf(make: (slot: number) => ExpertMatrices<CpuScheme> = () => expert()): ExpertWeights<CpuScheme> {
  return { numExperts: 5, expert: (slot) => Promise.resolve().then(() => make(slot)) };
}

async function errorOf(promise: Promise<unknown>): Promise<MoeError> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof MoeError) return error;
    throw error;
  }
  throw new Error('expected a MoeError');
}

describe('CpuMoeBackend', () => {
  const backend = new CpuMoeBackend();

  describe('#pack', () => {
    it('reports the bytes of every expert as it is packed', async () => {
      const progress: number[] = [];
      const packed = await backend.pack(group, wider, weightsOf(), { device, onProgress: (bytes) => progress.push(bytes) });
      // Three matrices of 32 x 64 weights: half a byte each, and a scale per 16.
      expect(progress).to.deep.equal(new Array(5).fill(3 * (1024 + 128)));
      packed.dispose();
    });

    it('keeps a few experts in memory at most, however slow packing is', async () => {
      let reading = 0;
      let most = 0;
      const weights: ExpertWeights<CpuScheme> = {
        numExperts: 5,
        expert: async () => {
          most = Math.max(most, ++reading);
          await new Promise(setImmediate);
          reading--;
          return expert();
        },
      };
      (await backend.pack(group, wider, weights, context)).dispose();
      expect(most).to.be.within(2, 4);
    });

    it('refuses a matrix of another shape, naming expert and projection', async () => {
      const error = await errorOf(
        backend.pack(
          group,
          wider,
          weightsOf((slot) => (slot === 3 ? expert({ up: matrix(16, 64) }) : expert())),
          context,
        ),
      );
      expect(error.code).to.equal('MOE_CHECKPOINT_TENSOR');
      expect(error.message).to.equal('model.layers.3.mlp.experts, slot 3, up: expected a matrix of shape [32, 64], got [16, 64].');
    });

    it('refuses arrays that are too short for their matrix', async () => {
      const error = await errorOf(
        backend.pack(
          group,
          wider,
          weightsOf(() => expert({ gate: matrix(32, 64, { blockScales: new Uint8Array(7) }) })),
          context,
        ),
      );
      expect(error.message).to.include('gate: expected blockScales of length 128, got 7.');
    });

    it('refuses NaN in block scales and in global scales', async () => {
      const spoiled = new Uint8Array(128).fill(0x38);
      spoiled[77] = 0x7f;
      for (const changes of [{ blockScales: spoiled }, { globalScale: NaN }, { globalScale: 0, globalScaleIs: 'divisor' }] as const) {
        const error = await errorOf(
          backend.pack(
            group,
            wider,
            weightsOf((slot) => (slot === 2 ? expert({ down: matrix(64, 32, changes) }) : expert())),
            context,
          ),
        );
        expect(error.code).to.equal('MOE_CHECKPOINT_TENSOR');
        expect(error.message).to.match(/^model\.layers\.3\.mlp\.experts, slot 2, down: a /u);
      }
    });

    it('passes on what reading throws', async () => {
      const broken = new MoeError('MOE_CHECKPOINT_READ', 'the file ends early');
      const reading = backend.pack(
        group,
        wider,
        weightsOf((slot) => {
          if (slot === 4) throw broken;
          return expert();
        }),
        context,
      );
      expect(await errorOf(reading)).to.equal(broken);
    });

    it('stops when it is told to', async () => {
      const controller = new AbortController();
      const reading: number[] = [];
      const packing = backend.pack(
        group,
        wider,
        weightsOf((slot) => {
          reading.push(slot);
          controller.abort(new MoeError('MOE_INTERNAL', 'stopped'));
          return expert();
        }),
        { device, signal: controller.signal },
      );
      expect((await errorOf(packing)).message).to.equal('stopped');
      expect(reading.length).to.be.below(5);
    });

    it('refuses a bias that the group does not have', async () => {
      const bias = { gate: new Float32Array(32), up: new Float32Array(32), down: new Float32Array(64) };
      const error = await errorOf(
        backend.pack(
          group,
          wider,
          weightsOf(() => expert({ bias })),
          context,
        ),
      );
      expect(error.message).to.include('there is a bias, none was expected');
    });
  });

  describe('#createKernel', () => {
    let packed: PackedWeights;
    beforeEach(async () => {
      packed = await backend.pack(
        group,
        wider,
        weightsOf((slot) => expert({ down: matrix(64, 32, slot === 1 ? { inputScale: undefined } : {}) })),
        context,
      );
    });
    afterEach(() => {
      packed.dispose();
    });

    it('needs input scales only where inputs are quantized', async () => {
      (await backend.createKernel(group, wider, packed, { device, maxNumTokens: 1 })).dispose();
      const error = await errorOf(backend.createKernel(group, same, packed, { device, maxNumTokens: 1 }));
      expect(error.code).to.equal('MOE_CHECKPOINT_TENSOR');
      expect(error.message).to.include('matrix 5 has no input scale').and.to.include('--numerics wider');
    });

    it('refuses weights of another layout', async () => {
      const foreign = { ...packed, layout: 'b12x/interleaved@1' };
      expect((await errorOf(backend.createKernel(group, wider, foreign, { device, maxNumTokens: 1 }))).code).to.equal('MOE_PLUGIN_BRAND');
    });

    it('gives a kernel that outlives the disposal of the packed weights', async () => {
      const runnable = new RunnableMoeBackend();
      const own = await runnable.pack(group, wider, weightsOf(), context);
      const kernel = await runnable.createKernel(group, wider, own, { device, maxNumTokens: 1 });
      own.dispose();
      const output = new Float32Array(64);
      const hiddenStates = new Float32Array(64).fill(1);
      runExperts(kernel, {
        numTokens: 1,
        topK: 2,
        hiddenStates,
        topkSlots: Int32Array.of(0, -1),
        topkWeights: Float32Array.of(0.5, 0.5),
        output,
        accumulate: false,
      });
      // Every weight is one: gate = up = 64, silu(64) = 64, h = 4096, and 32 of them times a half.
      expect([...output]).to.deep.equal(new Array(64).fill(65536));
      kernel.dispose();
    });
  });

  it('promises at least the workspace that its kernels take, and not many times more', async () => {
    const large: ExpertGroupSpec = { ...group, hiddenSize: 384, moeIntermediateSize: 256, topK: 4 };
    const weights: ExpertWeights<CpuScheme> = {
      numExperts: 5,
      expert: () => Promise.resolve({ gate: matrix(256, 384), up: matrix(256, 384), down: matrix(384, 256) }),
    };
    const packed = await backend.pack(large, same, weights, context);
    for (const rule of [same, wider]) {
      const kernel = await backend.createKernel(large, rule, packed, { device, maxNumTokens: 2048 });
      for (const numTokens of [1, 64, 2048]) {
        const promised = backend.footprint(large, rule).workspaceBytes(numTokens);
        expect(kernel.workspaceBytes(numTokens)).to.be.within(promised / 8, promised);
      }
      // A device allocates for the largest step and runs smaller ones in the same memory.
      for (let numTokens = 1; numTokens < 2500; numTokens++) {
        expect(kernel.workspaceBytes(numTokens + 1)).to.be.at.least(kernel.workspaceBytes(numTokens), String(numTokens));
      }
      kernel.dispose();
    }
    packed.dispose();
  });
});

describe('CpuLinearBackend', () => {
  const backend = new CpuLinearBackend();
  const rule = ruleOf(linearRules, 'nvfp4-same-portable');
  const linear: LinearSpec = {
    kind: 'linear',
    name: 'model.layers.0.self_attn.qkv_proj',
    role: 'target',
    layerIndex: 0,
    scheme: 'nvfp4.w4a4',
    modules: [
      { name: 'q_proj', outFeatures: 32 },
      { name: 'k_proj', outFeatures: 16 },
    ],
    inFeatures: 64,
    outFeatures: 48,
    hasBias: false,
    parallel: singleRank,
  };

  it('names the module whose matrix is wrong', async () => {
    const weights = { numModules: 2, module: () => Promise.resolve({ matrix: matrix(32, 64), bias: undefined }) };
    const error = await errorOf(backend.pack(linear, rule, weights, context));
    expect(error.message).to.equal('k_proj: expected a matrix of shape [16, 64], got [32, 64].');
  });

  it('takes a module without bias as one of zeros where others have one', async () => {
    const weights = {
      numModules: 2,
      module: (index: number) =>
        Promise.resolve(index === 0 ? { matrix: matrix(32, 64), bias: new Float32Array(32) } : { matrix: matrix(16, 64), bias: undefined }),
    };
    const packed = await backend.pack({ ...linear, hasBias: true }, rule, weights, context);
    expect(backend.unpack(linear, packed)).to.have.length(2);
    packed.dispose();
  });
});
