/** The cases that this project exists for, with the backends that it ships, from headers alone. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Checkpoint, describeModel, deviceProfile, explainUnserved, isServable, plan, singleRank, summarizePlan } from '@moe-server/core';
import type { ExpertGroupSpec, LayerSpec, ParallelPlacement, Plan, PlanRequest, PluginHost, Preference, SchemeKey } from '@moe-server/core';
import { deepseekV3, mixedQwen35Moe, writeSparseCheckpoint } from '@moe-server/test-kit';
import type { SparseModel } from '@moe-server/test-kit';
import { expect } from 'chai';
import { loadPlugins } from 'moe-server';

const routing = {
  score: 'softmax',
  order: 'score-first',
  renormalize: true,
  numGroups: 1,
  topkGroups: 1,
  hasCorrectionBias: false,
  hasRouterBias: false,
  scalingFactor: 1,
} as const;

function experts(layerIndex: number, scheme: SchemeKey, changes: Partial<ExpertGroupSpec> = {}): ExpertGroupSpec {
  const numExperts = changes.numExperts ?? 128;
  return {
    kind: 'moe',
    name: `model.layers.${String(layerIndex)}.mlp.experts`,
    role: 'target',
    layerIndex,
    schemes: { w13: scheme, w2: scheme },
    hiddenSize: 2048,
    moeIntermediateSize: 768,
    numExperts,
    experts: Array.from({ length: numExperts }, (_, expert) => expert),
    topK: 8,
    activation: { type: 'silu' },
    hasBias: false,
    routing,
    parallel: singleRank,
    ...changes,
  };
}

function wish(effect: Preference['effect'], backend: string, scope: Preference['scope'] = {}): Preference {
  return { effect, backend, scope, source: { type: 'flag', text: `--moe-backend ${backend}` } };
}

const tensorParallel = (tpSize: number): ParallelPlacement => ({ ...singleRank, tpSize });

describe('the shipped backends', () => {
  let host: PluginHost;
  before(async () => {
    host = (await loadPlugins({ plugins: false })).host;
  });

  function planOf(layers: readonly LayerSpec[], as: string, changes: Partial<PlanRequest> = {}): Plan {
    return plan({
      layers,
      device: deviceProfile(as),
      moeBackends: host.moeBackends,
      linearBackends: host.linearBackends,
      maxNumTokens: 8192,
      assumeBuilt: true,
      ...changes,
    });
  }

  const backendsOf = (made: Plan) => made.layers.map(({ bindings }) => bindings.map(({ backend }) => backend).join('+'));
  const reasonsOf = (made: Plan, backend: string) =>
    made.layers.flatMap(({ refused }) =>
      refused.filter((one) => one.backend === backend).flatMap(({ reasons }) => reasons.map(({ message }) => message)),
    );

  async function planCheckpoint(
    model: SparseModel,
    as: string,
    parallel: ParallelPlacement,
    changes: Partial<PlanRequest> = {},
  ): Promise<Plan> {
    const folder = await mkdtemp(join(tmpdir(), 'moe-scenario-'));
    try {
      await writeSparseCheckpoint(folder, model);
      const checkpoint = await Checkpoint.open(folder);
      try {
        const { groups, linears } = describeModel(checkpoint, { parallel });
        return planOf([...groups, ...linears], as, changes);
      } finally {
        await checkpoint.close();
      }
    } finally {
      await rm(folder, { recursive: true });
    }
  }

  const mixed = [experts(0, 'nvfp4.w4a16'), experts(1, 'nvfp4.w4a4'), experts(2, 'fp8.block128'), experts(3, 'bf16', { role: 'draft' })];

  it('serve NVFP4 by b12x, FP8 by cutlass and a BF16 draft by another where b12x is preferred for all', () => {
    const made = planOf(mixed, 'gb10', { preferences: [wish('prefer', 'b12x')] });
    expect(backendsOf(made).slice(0, 3)).to.deep.equal(['b12x', 'b12x', 'cutlass']);
    expect(backendsOf(made)[3]).to.be.oneOf(['cutlass', 'triton']);
    expect(isServable(made)).to.equal(true);
    expect(made.notices).to.have.length(1);
    expect(made.notices[0]).to.contain('b12x does not serve 2 of the 4 layers it was asked for');
  });

  it('end in one error that names every group where b12x is required for all', () => {
    const made = planOf(mixed, 'gb10', { preferences: [wish('require', 'b12x')] });
    const { message } = explainUnserved(made);
    expect(message).to.contain('2 of 4 layers (2 groups)');
    for (const group of ['experts fp8.block128 (model.layers.2.mlp.experts)', 'draft experts bf16 (model.layers.3.mlp.experts)'])
      expect(message).to.contain(group);
    expect(message).to.contain('It would be served by cutlass or triton without --moe-backend b12x (flag).');
  });

  it('let FP8 go elsewhere by a narrower wish', () => {
    const made = planOf(mixed, 'gb10', {
      preferences: [wish('require', 'b12x'), wish('prefer', 'triton', { family: 'fp8' }), wish('prefer', 'triton', { role: 'draft' })],
    });
    expect(backendsOf(made)).to.deep.equal(['b12x', 'b12x', 'triton', 'triton']);
  });

  it('take the native NVFP4 kernel on SM 12.0 by themselves', () => {
    const made = planOf([experts(0, 'nvfp4.w4a16')], 'rtx-pro-6000');
    expect(backendsOf(made)).to.deep.equal(['b12x']);
    expect(made.layers[0]?.bindings[0]?.because).to.match(/^priority \d+, the highest of \d+ rules that cover it/);
  });

  it('run W4A4 with wider inputs on an A100 and say so, or refuse where that is not wanted', () => {
    const made = planOf([experts(0, 'nvfp4.w4a4')], 'a100');
    expect(made.layers[0]?.bindings.map(({ numerics }) => numerics)).to.deep.equal(['wider']);
    const strict = planOf([experts(0, 'nvfp4.w4a4')], 'a100', { numerics: { default: 'same' } });
    expect(explainUnserved(strict).message).to.contain('--numerics same does not allow that').and.to.contain('with --numerics auto');
  });

  it('refuse 1280 by tensor parallel 8 with what each needs, and the size that would do', () => {
    const cut = experts(0, 'nvfp4.w4a16', { moeIntermediateSize: 160, parallel: tensorParallel(8) });
    expect(reasonsOf(planOf([cut], 'gb10'), 'b12x')).to.include(
      'it would serve it if moe_intermediate_size were a multiple of 64: it is 160 after tensor parallel 8; pad to 192, or use tensor parallel 4.',
    );
    const blocks = planOf([{ ...cut, schemes: { w13: 'fp8.block128', w2: 'fp8.block128' } }], 'h100');
    expect(blocks.unserved).to.have.length(1);
    expect(reasonsOf(blocks, 'triton')).to.include(
      'fp8.block128 has one scale per 128 columns, and moe_intermediate_size is 160 after tensor parallel 8; pad to 256, or use tensor parallel 2.',
    );
  });

  it('say who is batch-invariant where MXFP4 is asked to be', () => {
    const made = planOf([experts(0, 'mxfp4.w4a16')], 'h100', { requirements: { batchInvariant: true } });
    expect(explainUnserved(made).message).to.match(/Batch-invariant are only .*; none covers these layers of mxfp4\.w4a16\./);
  });

  it('do not drop a clamp: a kernel that does not declare it is refused', () => {
    const made = planOf([experts(0, 'nvfp4.w4a4', { activation: { type: 'swiglu', alpha: 1.702, limit: 7 } })], 'gb10');
    expect(backendsOf(made)[0]).not.to.equal('b12x');
    expect(reasonsOf(made, 'b12x')).to.include('it runs silu; the layer has swiglu with alpha 1.702 and limit 7.');
  });

  it('plan a mixed checkpoint for every device that they know, one layer group at a time', async () => {
    for (const [as, nvfp4] of [
      ['gb10', 'b12x'],
      ['rtx-pro-6000', 'b12x'],
      ['b200', 'cutlass'],
      ['h100', undefined],
      ['l40s', undefined],
      ['a100', undefined],
    ] as const) {
      const made = await planCheckpoint(mixedQwen35Moe({ numLayers: 8, numExperts: 8 }), as, singleRank);
      expect(made.unserved, as).to.deep.equal([]);
      const row = summarizePlan(made).find(({ kind, scheme }) => kind === 'moe' && scheme === 'nvfp4.w4a16');
      if (nvfp4 !== undefined) expect(row?.backend, as).to.equal(nvfp4);
    }
  });

  it('plan the ranks of DeepSeek-V3: equal hashes, each rank its own experts', async () => {
    const model = deepseekV3({ numLayers: 5, numExperts: 16 });
    const ranks = await Promise.all(
      [0, 7].map(async (rank) => planCheckpoint(model, 'h200', { tpRank: rank, tpSize: 8, epRank: rank, epSize: 8 })),
    );
    expect(ranks.map(isServable)).to.deep.equal([true, true]);
    expect(ranks[0]?.hash).to.equal(ranks[1]?.hash);
    const owned = ranks.map(({ layers }) => layers.find(({ kind }) => kind === 'moe')?.experts);
    expect(owned).to.deep.equal([
      [0, 1],
      [14, 15],
    ]);
    const whole = await planCheckpoint(model, 'h200', singleRank);
    expect(ranks[0]?.bytes.residentBytes).to.be.lessThan(whole.bytes.residentBytes / 4);
  });
});
