import type {
  DeviceInfo,
  ExpertGroupSpec,
  LayerPlan,
  LayerSpec,
  LinearSpec,
  Plan,
  Preference,
  PreferenceSource,
  SchemeKey,
} from '@moe-server/core';
import {
  Checkpoint,
  createPluginHost,
  describeModel,
  deviceProfile,
  explainUnserved,
  isServable,
  loadPlugin,
  planWith,
} from '@moe-server/core';
import { expertGroup, linearSpec } from '@moe-server/core/conformance';
import b12x from '@moe-server/backend-b12x';
import cutlass from '@moe-server/backend-cutlass';
import triton from '@moe-server/backend-triton';
import { fixtureFolder } from '@moe-server/test-kit';
import { expect } from 'chai';

/**
 * The case that ended another engine at its start (vLLM pull request 43334, and 56832 for draft heads): NVFP4 experts in most layers, FP8 experts in
 * some, FP8 attention, a BF16 draft head, on a GB10 where an FP4-only backend was named for everything. The shape is that of a 35B-A3B model.
 */
function mixedLayers(nvfp4: SchemeKey = 'nvfp4.w4a4', fp8: SchemeKey = 'fp8.block128'): LayerSpec[] {
  const experts = (name: string, w13: SchemeKey, role: 'target' | 'draft', layerIndex: number): ExpertGroupSpec => ({
    ...expertGroup({ w13, hiddenSize: 2048, moeIntermediateSize: 512, numExperts: 256, topK: 8 }),
    name,
    role,
    layerIndex,
  });
  const linear = (name: string, scheme: SchemeKey, role: 'target' | 'draft', outFeatures: readonly number[]): LinearSpec => ({
    ...linearSpec(scheme, 2048, outFeatures),
    name,
    role,
    modules: outFeatures.map((size, index) => ({ name: `${name}.${index}`, outFeatures: size })),
  });
  const decoder = Array.from({ length: 40 }, (_, layer) => [
    experts(`model.layers.${layer}.mlp.experts`, layer % 8 === 7 ? fp8 : nvfp4, 'target', layer),
    linear(`model.layers.${layer}.self_attn.qkv_proj`, 'fp8.tensor.static', 'target', [4096, 512, 512]),
  ]).flat();
  return [
    ...decoder,
    linear('lm_head', 'bf16', 'target', [151936]),
    experts('mtp.layers.0.mlp.experts', 'bf16', 'draft', 0),
    linear('mtp.layers.0.self_attn.qkv_proj', 'bf16', 'draft', [4096, 512, 512]),
  ];
}

interface Question {
  readonly layers?: readonly LayerSpec[];
  readonly device?: DeviceInfo;
  readonly preferences?: readonly Preference[];
  readonly assumeBuilt?: boolean;
  readonly plugins?: readonly unknown[];
}

async function ask(question: Question = {}): Promise<Plan> {
  const {
    layers = mixedLayers(),
    device = deviceProfile('gb10'),
    preferences = [],
    assumeBuilt = true,
    plugins = [b12x, cutlass, triton],
  } = question;
  const host = createPluginHost();
  for (const plugin of plugins) await loadPlugin(host, plugin, 'test');
  return planWith(host, { layers, device, preferences, assumeBuilt, maxNumTokens: 8192 });
}

/** `moe target nvfp4.w4a4: b12x same`, sorted, each kind of layer once. */
function bound({ layers }: Plan): string[] {
  const text = ({ kind, role, scheme, bindings }: LayerPlan): string =>
    `${kind} ${role} ${scheme}: ${bindings.map(({ backend, numerics }) => `${backend} ${numerics}`).join(' + ') || 'nobody'}`;
  return [...new Set(layers.map(text))].sort();
}

const flag = (text: string): PreferenceSource => ({ type: 'flag', text });
const b12xForAll = (effect: 'prefer' | 'require', source = flag('--moe-backend b12x')): Preference => ({
  effect,
  backend: 'b12x',
  scope: { kind: 'moe' },
  source,
});

const threeBackends = [
  'linear draft bf16: triton same',
  'linear target bf16: triton same',
  'linear target fp8.tensor.static: cutlass same',
  'moe draft bf16: triton same',
  'moe target fp8.block128: cutlass same',
  'moe target nvfp4.w4a4: b12x same',
];

describe('a checkpoint of NVFP4, FP8 and BF16 layers on a GB10', () => {
  it('is served by three backends without a setting', async () => {
    const plan = await ask();
    expect(bound(plan)).to.deep.equal(threeBackends);
    expect(isServable(plan)).to.equal(true);
    expect(plan.notices).to.deep.equal([]);
  });

  it('is served the same where b12x is preferred for everything, and the plan says what b12x was not used for', async () => {
    const plan = await ask({ preferences: [b12xForAll('prefer')] });
    expect(bound(plan)).to.deep.equal(threeBackends);
    expect(isServable(plan)).to.equal(true);
    const notices = plan.notices.join('\n');
    expect(notices).to.contain('--moe-backend b12x').and.to.contain('fp8.block128').and.to.contain('bf16');
    const nvfp4 = plan.layers.find(({ name }) => name === 'model.layers.0.mlp.experts');
    expect(nvfp4?.bindings[0]?.because).to.contain('preferred by --moe-backend b12x (flag)');
    const fp8 = plan.layers.find(({ name }) => name === 'model.layers.7.mlp.experts');
    expect(fp8?.bindings[0]?.because).to.contain('prefers b12x, which does not serve it: it runs nvfp4');
  });

  it('is served the same with weight-only NVFP4 experts', async () => {
    const plan = await ask({ layers: mixedLayers('nvfp4.w4a16'), preferences: [b12xForAll('prefer')] });
    expect(bound(plan)).to.include('moe target nvfp4.w4a16: b12x same').and.to.include('moe target fp8.block128: cutlass same');
    expect(isServable(plan)).to.equal(true);
  });

  it('is one error where b12x is required for everything, with every group, the reasons, what would serve and the source', async () => {
    const plan = await ask({ preferences: [b12xForAll('require')] });
    const expectedUnserved = plan.layers.filter(({ kind, scheme }) => kind === 'moe' && scheme !== 'nvfp4.w4a4').map(({ name }) => name);
    expect([...plan.unserved].sort()).to.deep.equal([...expectedUnserved].sort());
    expect(bound(plan)).to.include('moe target nvfp4.w4a4: b12x same').and.to.include('linear target fp8.tensor.static: cutlass same');
    const { code, message } = explainUnserved(plan);
    expect(code).to.equal('MOE_UNSUPPORTED_LAYERS');
    expect(message).to.contain('6 of 83 layers (2 groups)').and.to.contain('NVIDIA GB10');
    for (const group of message.split('\n').filter((line) => line.includes('would be served')))
      expect(group).to.contain('cutlass').and.to.contain('triton');
    expect(message).to.contain('fp8.block128').and.to.contain('bf16').and.to.contain('draft');
    expect(message).to.contain('these weights are fp8.block128.').and.to.contain('these weights are bf16.');
    expect(message).to.contain('--moe-backend b12x (flag) requires b12x here');
  });

  it('lets a require for NVFP4 alone leave the other layers alone', async () => {
    const require: Preference = { ...b12xForAll('require', flag('--moe-backend.nvfp4 b12x')), scope: { kind: 'moe', family: 'nvfp4' } };
    expect(bound(await ask({ preferences: [require] }))).to.deep.equal(threeBackends);
  });

  const sources: Readonly<Record<PreferenceSource['type'], { readonly all: string; readonly fp8: string }>> = {
    flag: { all: '--moe-backend b12x', fp8: '--moe-backend.fp8 triton' },
    environment: { all: 'MOE_BACKEND=b12x', fp8: 'MOE_FP8_BACKEND=triton' },
    file: { all: 'moe.config.json: moeBackend', fp8: 'moe.config.json: moeBackend.fp8' },
  };
  for (const fp8Source of ['flag', 'environment', 'file'] as const) {
    for (const allSource of ['none', 'flag', 'environment', 'file'] as const) {
      it(`gives FP8 experts to triton by ${fp8Source}, beside b12x for all by ${allSource}`, async () => {
        const scoped: Preference = {
          effect: 'prefer',
          backend: 'triton',
          scope: { kind: 'moe', family: 'fp8' },
          source: { type: fp8Source, text: sources[fp8Source].fp8 },
        };
        const all = allSource === 'none' ? [] : [b12xForAll('prefer', { type: allSource, text: sources[allSource].all })];
        for (const preferences of [
          [scoped, ...all],
          [...all, scoped],
        ]) {
          const plan = await ask({ preferences });
          expect(bound(plan)).to.deep.equal(
            threeBackends.map((line) => line.replace('moe target fp8.block128: cutlass', 'moe target fp8.block128: triton')),
          );
          const fp8 = plan.layers.find(({ name }) => name === 'model.layers.7.mlp.experts');
          expect(fp8?.bindings[0]?.because).to.contain(`preferred by ${sources[fp8Source].fp8} (${fp8Source})`);
        }
      });
    }
  }

  it('keeps a forbidden backend out, whatever else is wished', async () => {
    const forbid: Preference = { effect: 'forbid', backend: 'triton', scope: {}, source: flag("--moe-backend '!triton'") };
    const prefer: Preference = { ...forbid, effect: 'prefer', scope: { role: 'draft' }, source: flag('--speculative-config') };
    const plan = await ask({ preferences: [forbid, prefer] });
    expect(bound(plan).join('\n')).to.not.contain('triton');
    expect(isServable(plan)).to.equal(true);
  });

  it('gets the same plan whatever order the plugins were loaded in', async () => {
    const orders = [
      [b12x, cutlass, triton],
      [triton, cutlass, b12x],
      [cutlass, triton, b12x],
    ];
    const hashes = await Promise.all(orders.map(async (plugins) => (await ask({ plugins })).hash));
    expect(new Set(hashes).size).to.equal(1);
  });

  it('is refused for a real start, because no kernel is built, and the error says so of every backend', async () => {
    const plan = await ask({ assumeBuilt: false });
    expect(plan.unserved).to.have.length(plan.layers.length);
    const { message } = explainUnserved(plan);
    for (const name of ['b12x', 'cutlass', 'triton']) {
      expect(message).to.contain(`this release of @moe-server/backend-${name} has rules and weight layouts, and no CUDA kernels yet`);
    }
  });

  it('is marked as not built where the rules alone are judged', async () => {
    const { layers, assumesBuilt } = await ask();
    expect(assumesBuilt).to.equal(true);
    for (const { bindings } of layers) expect(bindings.map(({ built }) => built)).to.deep.equal([false]);
  });

  it('is refused in figures where the device is too small, before a weight is read', async () => {
    const plan = await ask({ device: { type: 'cuda', name: 'a card of 16 GB', sm: 120, memoryBytes: 16e9 } });
    expect(plan.bytes.fits).to.equal(false);
    expect(explainUnserved(plan)).to.have.property('code', 'MOE_CAPACITY_MEMORY');
  });
});

describe('the same checkpoint elsewhere', () => {
  const table: Readonly<Record<string, Readonly<Record<'nvfp4.w4a4' | 'fp8.block128' | 'fp8.tensor.static', string>>>> = {
    'rtx-pro-6000': { 'nvfp4.w4a4': 'b12x same', 'fp8.block128': 'cutlass same', 'fp8.tensor.static': 'cutlass same' },
    b200: { 'nvfp4.w4a4': 'cutlass same', 'fp8.block128': 'cutlass same', 'fp8.tensor.static': 'cutlass same' },
    h100: { 'nvfp4.w4a4': 'cutlass wider', 'fp8.block128': 'cutlass same', 'fp8.tensor.static': 'cutlass same' },
    l40s: { 'nvfp4.w4a4': 'cutlass wider', 'fp8.block128': 'cutlass same', 'fp8.tensor.static': 'cutlass same' },
    a100: { 'nvfp4.w4a4': 'cutlass wider', 'fp8.block128': 'cutlass wider', 'fp8.tensor.static': 'cutlass wider' },
  };
  for (const [device, expected] of Object.entries(table)) {
    it(`is bound on ${device} as its instructions allow, BF16 by triton`, async () => {
      const plan = await ask({ device: deviceProfile(device), preferences: [b12xForAll('prefer')] });
      expect(isServable(plan)).to.equal(true);
      expect(bound(plan)).to.deep.equal([
        'linear draft bf16: triton same',
        'linear target bf16: triton same',
        `linear target fp8.tensor.static: ${expected['fp8.tensor.static']}`,
        'moe draft bf16: triton same',
        `moe target fp8.block128: ${expected['fp8.block128']}`,
        `moe target nvfp4.w4a4: ${expected['nvfp4.w4a4']}`,
      ]);
    });
  }

  it('is not served before SM 8.0, and every backend says what it needs', async () => {
    const plan = await ask({ device: deviceProfile('sm_75') });
    expect(plan.unserved).to.have.length(plan.layers.length);
    const { message } = explainUnserved(plan);
    expect(message).to.contain('it needs SM 12.0 or SM 12.1').and.to.contain('it needs SM 8.0 or newer');
  });
});

describe('a real export of that kind', () => {
  it('is planned from its headers with all four schemes of experts, its draft head included', async function () {
    const folder = fixtureFolder('qwen35moe-modelopt-mixed');
    if (folder === undefined) this.skip();
    const checkpoint = await Checkpoint.open(folder);
    const { groups, linears } = describeModel(checkpoint);
    await checkpoint.close();
    const plan = await ask({ layers: [...groups, ...linears], preferences: [b12xForAll('prefer')] });
    expect(isServable(plan)).to.equal(true);
    expect(bound(plan).filter((line) => line.startsWith('moe'))).to.deep.equal([
      'moe draft bf16: triton same',
      'moe target fp8.tensor.static: cutlass same',
      'moe target nvfp4.w4a16: b12x same',
      'moe target nvfp4.w4a4: b12x same',
    ]);
  });
});
