import type { Evidence, LayerSpec, LinearSpec, NumericsPolicy, Plan } from '@moe-server/core';
import { createPluginHost, deriveNumerics, layerClassOf, loadPlugin, plan, schemeInfo, schemeKeys, singleRank } from '@moe-server/core';
import { expect } from 'chai';
import plugin, { expertRules, linearRules } from '../src/index.js';
import type { CpuScheme, InstructionSet } from '../src/index.js';
import { formatOf, inputKindOf, isCpuScheme } from '../src/formats.js';
import { deviceOf, quantizedSchemes } from './device.js';

const schemes = schemeKeys().filter((key): key is CpuScheme => isCpuScheme(key as CpuScheme));

function layersOf(scheme: CpuScheme): LayerSpec[] {
  const common = { role: 'target', layerIndex: 0, hasBias: false, parallel: singleRank } as const;
  return [
    {
      ...common,
      kind: 'moe',
      name: 'model.layers.0.mlp.experts',
      schemes: { w13: scheme, w2: scheme },
      hiddenSize: 256,
      moeIntermediateSize: 128,
      numExperts: 8,
      experts: [0, 1, 2, 3, 4, 5, 6, 7],
      topK: 2,
      activation: { type: 'silu' },
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
    },
    {
      ...common,
      kind: 'linear',
      name: 'model.layers.0.self_attn.o_proj',
      scheme,
      modules: [{ name: 'o', outFeatures: 256 }],
      inFeatures: 256,
      outFeatures: 256,
    },
  ];
}

async function planOn(
  layers: readonly LayerSpec[],
  isa: InstructionSet,
  numerics: NumericsPolicy['default'],
  evidence: Evidence = {},
): Promise<Plan> {
  const host = createPluginHost();
  await loadPlugin(host, plugin, 'test');
  return plan({
    layers,
    device: deviceOf(isa),
    moeBackends: host.moeBackends,
    linearBackends: host.linearBackends,
    numerics: { default: numerics, byScheme: {} },
    maxNumTokens: 64,
    evidence,
  });
}

async function boundRules(layers: readonly LayerSpec[], isa: InstructionSet, numerics: NumericsPolicy['default']): Promise<string[]> {
  const made = await planOn(layers, isa, numerics);
  return made.layers.flatMap(({ bindings }) => bindings.map(({ rule }) => rule));
}

describe('rules of the cpu backend', () => {
  it('cover every scheme of the core, for experts and for linears', () => {
    for (const rules of [expertRules, linearRules]) {
      expect([...new Set(rules.flatMap((rule) => rule.schemes))].sort()).to.deep.equal([...schemeKeys()].sort());
    }
  });

  it('are what their names say, by the core’s derivation', () => {
    for (const { id, schemes: keys, arithmetic } of [...expertRules, ...linearRules]) {
      for (const key of keys) {
        const info = schemeInfo(key);
        const expected = id.includes('-wider-') ? 'wider' : 'same';
        expect(info === undefined ? undefined : deriveNumerics(info, arithmetic), id).to.equal(expected);
      }
    }
  });

  for (const isa of ['portable', 'avx2', 'avx512', 'neon'] as const) {
    for (const scheme of schemes) {
      it(`bind ${scheme} to ${isa} kernels on such a processor, whatever the numerics`, async () => {
        const isQuantized = quantizedSchemes.includes(scheme);
        for (const numerics of ['auto', 'same', 'wider'] as const) {
          const rules = await boundRules(layersOf(scheme), isa, numerics);
          expect(rules).to.have.length(2);
          for (const rule of rules) {
            expect(rule).to.match(new RegExp(`-${isa}$`, 'u'));
            if (isQuantized && numerics !== 'auto') expect(rule).to.include(`-${numerics}-`);
          }
        }
      });
    }
  }
});

describe('rules of the cpu backend with AVX-512', () => {
  const float32Of = (scheme: CpuScheme): string => {
    const [family = scheme] = scheme.split('.');
    if (scheme === 'f16') return 'f16-avx512';
    const name = quantizedSchemes.includes(scheme) ? `${family}-wider` : scheme === 'nvfp4.w4a16' ? 'nvfp4-w4a16' : family;
    return `${name}-f32-avx512`;
  };
  const cached = (scheme: CpuScheme): LinearSpec[] =>
    layersOf(scheme).flatMap((layer) => (layer.kind === 'linear' ? [{ ...layer, cachedAs: 'f8e4m3' as const }] : []));

  for (const scheme of schemes) {
    it(`round the inputs of ${scheme} to bf16, unless a KV cache rounds what the linear computes`, async () => {
      const bf16 = float32Of(scheme).replace('-f32', '');
      expect(await boundRules(layersOf(scheme), 'avx512', 'auto')).to.deep.equal([bf16, bf16]);
      expect(await boundRules(cached(scheme), 'avx512', 'auto')).to.deep.equal([float32Of(scheme)]);
    });

    it(`leave the inputs of ${scheme} alone under float32`, async () => {
      const rule = float32Of(scheme);
      expect(await boundRules(layersOf(scheme), 'avx512', 'float32')).to.deep.equal([rule, rule]);
    });
  }

  it('say so in a sentence, and no measurement changes it', async () => {
    const [spec] = cached('bf16') as [LinearSpec];
    const times = ['bf16-avx512', 'bf16-f32-avx512'].map((rule, i) => ({ backend: 'cpu', rule, numTokens: 1, medianUs: 10 + 10 * i }));
    const classes = [{ layerClass: layerClassOf(spec), measuredAt: '2026-01-02T03:04:05.000Z', times }];
    const { layers } = await planOn([spec], 'avx512', 'auto', { measured: { environment: 'here', classes } });
    expect(layers[0]?.bindings[0]?.rule).to.equal('bf16-f32-avx512');
    const refused = layers[0]?.refused.find(({ rule }) => rule === 'bf16-avx512');
    expect(refused?.reasons.map(({ message }) => message)).to.deep.equal([
      'it rounds inputs to bf16, which would move keys and values to other numbers of the f8e4m3 KV cache.',
    ]);
  });
});

describe('formatOf and inputKindOf', () => {
  it('follow the scheme’s own description', () => {
    const table = Object.fromEntries(schemes.map((scheme) => [scheme, `${formatOf(scheme)} x ${inputKindOf(scheme)}`]));
    expect(table).to.deep.equal({
      'nvfp4.w4a4': 'nvfp4 x nvfp4',
      'nvfp4.w4a16': 'nvfp4 x float',
      'fp8.tensor.static': 'fp8 x fp8-static',
      'fp8.tensor.dynamic': 'fp8 x fp8-token',
      'fp8.channel': 'fp8 x fp8-token',
      'fp8.block128': 'fp8-block128 x fp8-group128',
      'mxfp4.w4a16': 'mxfp4 x float',
      bf16: 'bf16 x float',
      f16: 'f16 x float',
    });
  });
});
