import type { ExpertGroupSpec, LayerSpec, Plan, SchemeKey } from '@moe-server/core';
import {
  createPluginHost,
  deriveNumerics,
  deviceProfile,
  isMoeError,
  loadPlugin,
  planWith,
  schemeInfo,
  singleRank,
} from '@moe-server/core';
import { expertGroup } from '@moe-server/core/conformance';
import { expect } from 'chai';
import plugin, { B12xMoeBackend, expertRules, layout } from '../src/index.js';

const sizes = { hiddenSize: 256, moeIntermediateSize: 128, numExperts: 8, topK: 2 };

/** What is bound with this plugin alone, as if its kernels were built. */
async function planOf(layers: readonly LayerSpec[], device: string, assumeBuilt = true): Promise<Plan> {
  const host = createPluginHost();
  await loadPlugin(host, plugin, 'test');
  return planWith(host, { layers, device: deviceProfile(device), maxNumTokens: 512, assumeBuilt });
}

/** Rules by scheme, for each of the devices; `-`: refused. */
const devices = ['sm_90', 'sm_100', 'sm_120', 'gb10', 'sm_122'];
const table: Readonly<Partial<Record<SchemeKey, readonly string[]>>> = {
  'nvfp4.w4a4': ['-', '-', 'nvfp4-same', 'nvfp4-same', '-'],
  'nvfp4.w4a16': ['-', '-', 'nvfp4-w4a16', 'nvfp4-w4a16', '-'],
  'mxfp4.w4a16': ['-', '-', '-', '-', '-'],
  'fp8.tensor.static': ['-', '-', '-', '-', '-'],
  'fp8.block128': ['-', '-', '-', '-', '-'],
  bf16: ['-', '-', '-', '-', '-'],
};

const refusals: readonly {
  readonly what: string;
  readonly device: string;
  readonly change: Partial<ExpertGroupSpec> & { readonly w13?: SchemeKey; readonly numExperts?: number };
  readonly says: string;
}[] = [
  { what: 'another device', device: 'h100', change: {}, says: 'it needs SM 12.0 or SM 12.1; the device is NVIDIA H100' },
  {
    what: 'another scheme',
    device: 'gb10',
    change: { w13: 'fp8.tensor.static' },
    says: 'it runs nvfp4.w4a4; these weights are fp8.tensor.static.',
  },
  {
    what: 'a slice that fills no atom of scales',
    device: 'gb10',
    change: { moeIntermediateSize: 160, parallel: { ...singleRank, tpSize: 8 } },
    says: 'it would serve it if moe_intermediate_size were a multiple of 64: it is 160 after tensor parallel 8; pad',
  },
  {
    what: 'a clamped activation',
    device: 'gb10',
    change: { activation: { type: 'swiglu', alpha: 1.702, limit: 7 } },
    says: 'it runs silu; the layer has swiglu with alpha 1.702 and limit 7.',
  },
  { what: 'biases', device: 'gb10', change: { hasBias: true }, says: 'its rule does not cover biases on the projections.' },
  {
    what: 'expert parallel',
    device: 'gb10',
    change: { parallel: { ...singleRank, epSize: 2 } },
    says: 'its rule does not cover expert parallel (size 2); it would serve it on one rank.',
  },
];

describe('rules of the b12x backend', () => {
  for (const [key, rules] of Object.entries(table)) {
    const scheme = key as SchemeKey;
    it(`bind ${scheme} on the devices that have the instructions`, async () => {
      const layers = [expertGroup({ ...sizes, w13: scheme })];
      for (const [index, device] of devices.entries()) {
        const { layers: planned } = await planOf(layers, device);
        for (const { bindings, refused, kind } of planned) {
          expect(bindings[0]?.rule ?? '-', `${device}, ${kind}`).to.equal(rules[index]);
          for (const { reasons } of refused) for (const { message } of reasons) expect(message).to.match(/^it .*\.$/u);
        }
      }
    });
  }

  for (const { what, device, change, says } of refusals) {
    it(`refuse in a sentence: ${what}`, async () => {
      const { w13 = 'nvfp4.w4a4', numExperts = 8, ...rest } = change;
      const group = { ...expertGroup({ ...sizes, w13, numExperts }), ...rest };
      const { layers } = await planOf([group], device);
      const messages = layers.flatMap(({ refused }) => refused.flatMap(({ reasons }) => reasons.map(({ message }) => message)));
      expect(messages.join('\n')).to.contain(says);
    });
  }

  it('are what their names say, by the core’s derivation', () => {
    for (const { id, schemes, arithmetic } of expertRules) {
      for (const key of schemes) {
        const info = schemeInfo(key);
        expect(info && deriveNumerics(info, arithmetic), `${id}, ${key}`).to.equal(id.endsWith('-wider') ? 'wider' : 'same');
      }
    }
  });

  it('share one layout of this package', () => {
    for (const rule of expertRules) expect(rule.layout).to.equal(layout.id);
    expect(layout.id).to.match(/^b12x\/.*@1$/u);
  });

  it('refuse a real start, and say that no kernel is built', async () => {
    const { layers, unserved } = await planOf([expertGroup({ ...sizes, w13: 'nvfp4.w4a4' })], 'gb10', false);
    expect(unserved).to.have.length(1);
    const reasons = layers[0]?.refused.flatMap((one) => one.reasons).filter(({ dimension }) => dimension === 'notBuilt') ?? [];
    expect(reasons).to.have.length(expertRules.length);
    for (const { message } of reasons) {
      expect(message).to.equal(
        'its kernel is not built here: this release of @moe-server/backend-b12x has rules and weight layouts, and no CUDA kernels yet.',
      );
    }
  });
});

describe('B12xMoeBackend', () => {
  it('throws where a kernel is asked for all the same, naming layer and rule', async () => {
    const group = expertGroup({ ...sizes, w13: 'nvfp4.w4a4' });
    const rule = expertRules.find(({ schemes }) => schemes.includes('nvfp4.w4a4'));
    const error: unknown = await new B12xMoeBackend().createKernel(group, rule!).catch((thrown: unknown) => thrown);
    expect(isMoeError(error) && error.code).to.equal('MOE_PLUGIN_ADDON');
    expect((error as Error).message)
      .to.contain(group.name)
      .and.to.contain(`b12x/${rule!.id}`)
      .and.to.contain('no CUDA kernels yet');
  });

  it('asks for more workspace the more tokens come, in whole bytes', () => {
    const group = expertGroup({ ...sizes, w13: 'nvfp4.w4a4' });
    const backend = new B12xMoeBackend();
    for (const rule of expertRules.filter(({ schemes }) => schemes.includes('nvfp4.w4a4'))) {
      const { workspaceBytes } = backend.footprint(group, rule);
      const bytes = [1, 7, 64, 512].map(workspaceBytes);
      for (const [i, count] of bytes.entries())
        expect(count)
          .to.satisfy(Number.isSafeInteger)
          .and.to.be.above(bytes[i - 1] ?? 0);
    }
  });
});
