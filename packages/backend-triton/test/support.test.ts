import type { ExpertGroupSpec, LayerSpec, Plan, SchemeKey } from '@moe-server/core';
import { createPluginHost, deriveNumerics, deviceProfile, isMoeError, loadPlugin, planWith, schemeInfo } from '@moe-server/core';
import { expertGroup, linearSpec } from '@moe-server/core/conformance';
import { expect } from 'chai';
import plugin, { TritonMoeBackend, TritonLinearBackend, expertRules, layout, linearRules } from '../src/index.js';

const sizes = { hiddenSize: 256, moeIntermediateSize: 128, numExperts: 8, topK: 2 };

/** What is bound with this plugin alone, as if its kernels were built. */
async function planOf(layers: readonly LayerSpec[], device: string, assumeBuilt = true): Promise<Plan> {
  const host = createPluginHost();
  await loadPlugin(host, plugin, 'test');
  return planWith(host, { layers, device: deviceProfile(device), maxNumTokens: 512, assumeBuilt });
}

/** Rules by scheme, for each of the devices; `-`: refused. */
const devices = ['sm_75', 'a100', 'l40s', 'h100', 'b200', 'rtx-pro-6000', 'gb10'];
const table: Readonly<Partial<Record<SchemeKey, readonly string[]>>> = {
  'nvfp4.w4a4': ['-', 'nvfp4-wider', 'nvfp4-wider', 'nvfp4-wider', 'nvfp4-wider', 'nvfp4-wider', 'nvfp4-wider'],
  'nvfp4.w4a16': ['-', 'nvfp4-w4a16', 'nvfp4-w4a16', 'nvfp4-w4a16', 'nvfp4-w4a16', 'nvfp4-w4a16', 'nvfp4-w4a16'],
  'mxfp4.w4a16': ['-', 'mxfp4', 'mxfp4', 'mxfp4', 'mxfp4', 'mxfp4', 'mxfp4'],
  'fp8.tensor.static': ['-', 'fp8-wider', 'fp8-same', 'fp8-same', 'fp8-same', 'fp8-same', 'fp8-same'],
  'fp8.tensor.dynamic': ['-', 'fp8-wider', 'fp8-same', 'fp8-same', 'fp8-same', 'fp8-same', 'fp8-same'],
  'fp8.channel': ['-', 'fp8-wider', 'fp8-same', 'fp8-same', 'fp8-same', 'fp8-same', 'fp8-same'],
  'fp8.block128': ['-', 'fp8-wider', 'fp8-same', 'fp8-same', 'fp8-same', 'fp8-same', 'fp8-same'],
  bf16: ['-', 'bf16', 'bf16', 'bf16', 'bf16', 'bf16', 'bf16'],
  f16: ['-', '-', '-', '-', '-', '-', '-'],
};

const refusals: readonly {
  readonly what: string;
  readonly device: string;
  readonly change: Partial<ExpertGroupSpec> & { readonly w13?: SchemeKey; readonly numExperts?: number };
  readonly says: string;
}[] = [
  { what: 'an old device', device: 'sm_75', change: { w13: 'bf16' }, says: 'it needs SM 8.0 or newer' },
  {
    what: 'FP8 inputs before SM 8.9',
    device: 'a100',
    change: { w13: 'fp8.channel' },
    says: 'it needs SM 8.9 or newer; the device is NVIDIA A100',
  },
  {
    what: 'more experts than the alignment counts',
    device: 'h100',
    change: { w13: 'bf16', numExperts: 1000 },
    says: 'it takes at most 992 experts; the layer has 1000',
  },
  { what: 'a scheme it does not have', device: 'h100', change: { w13: 'f16' }, says: 'these weights are f16.' },
];

describe('rules of the triton backend', () => {
  for (const [key, rules] of Object.entries(table)) {
    const scheme = key as SchemeKey;
    it(`bind ${scheme} on the devices that have the instructions`, async () => {
      const layers = [expertGroup({ ...sizes, w13: scheme }), linearSpec(scheme, 256, [128, 128])];
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
    for (const { id, schemes, arithmetic } of [...expertRules, ...linearRules]) {
      for (const key of schemes) {
        const info = schemeInfo(key);
        expect(info && deriveNumerics(info, arithmetic), `${id}, ${key}`).to.equal(id.endsWith('-wider') ? 'wider' : 'same');
      }
    }
  });

  it('share one layout of this package', () => {
    for (const rule of [...expertRules, ...linearRules]) expect(rule.layout).to.equal(layout.id);
    expect(layout.id).to.match(/^triton\/.*@1$/u);
  });

  it('refuse a real start, and say that no kernel is built', async () => {
    const { layers, unserved } = await planOf([expertGroup({ ...sizes, w13: 'nvfp4.w4a4' })], 'gb10', false);
    expect(unserved).to.have.length(1);
    const reasons = layers[0]?.refused.flatMap((one) => one.reasons).filter(({ dimension }) => dimension === 'notBuilt') ?? [];
    expect(reasons).to.have.length(expertRules.length);
    for (const { message } of reasons) {
      expect(message).to.equal(
        'its kernel is not built here: this release of @moe-server/backend-triton has rules and weight layouts, and no CUDA kernels yet.',
      );
    }
  });
});

describe('TritonMoeBackend', () => {
  it('throws where a kernel is asked for all the same, naming layer and rule', async () => {
    const group = expertGroup({ ...sizes, w13: 'nvfp4.w4a4' });
    const rule = expertRules.find(({ schemes }) => schemes.includes('nvfp4.w4a4'));
    const error: unknown = await new TritonMoeBackend().createKernel(group, rule!).catch((thrown: unknown) => thrown);
    expect(isMoeError(error) && error.code).to.equal('MOE_PLUGIN_ADDON');
    expect((error as Error).message)
      .to.contain(group.name)
      .and.to.contain(`triton/${rule!.id}`)
      .and.to.contain('no CUDA kernels yet');
  });

  it('asks for more workspace the more tokens come, in whole bytes', () => {
    const group = expertGroup({ ...sizes, w13: 'nvfp4.w4a4' });
    const backend = new TritonMoeBackend();
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

describe('TritonLinearBackend', () => {
  it('throws where a kernel is asked for all the same, naming layer and rule', async () => {
    const linear = linearSpec('bf16', 256, [128]);
    const rule = linearRules.find(({ id }) => id === 'bf16');
    const error: unknown = await new TritonLinearBackend().createKernel(linear, rule!).catch((thrown: unknown) => thrown);
    expect(isMoeError(error) && error.code).to.equal('MOE_PLUGIN_ADDON');
    expect((error as Error).message)
      .to.contain(linear.name)
      .and.to.contain('triton/bf16');
  });

  it('asks for more workspace the more tokens come', () => {
    for (const rule of linearRules) {
      const linear = linearSpec(rule.schemes[0]!, 256, [128, 128]);
      const { workspaceBytes } = new TritonLinearBackend().footprint(linear, rule);
      expect(workspaceBytes(1)).to.satisfy(Number.isSafeInteger).and.to.be.above(0);
      expect(workspaceBytes(512)).to.be.above(workspaceBytes(1));
    }
  });
});
