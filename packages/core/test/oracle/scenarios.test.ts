/** Cases in which other engines fail at start, fail later, or pick wrongly without a word, with backends declared after theirs. */
import { expect } from 'chai';
import { contractVersion, definePlugin } from '../../src/plugin.js';
import { createPluginHost, loadPlugin } from '../../src/plugin-host.js';
import type { CudaDeviceInfo } from '../../src/device-info.js';
import { isMoeError } from '../../src/errors.js';
import { singleRank, type LayerSpec } from '../../src/layer-spec.js';
import type { ErasedMoeBackend } from '../../src/oracle/erased-backend.js';
import { layerClassOf } from '../../src/oracle/evidence.js';
import { explainUnserved, isServable } from '../../src/oracle/explain.js';
import { plan } from '../../src/oracle/plan.js';
import { diffPlans } from '../../src/oracle/plan-diff.js';
import type { LayerPlan, Plan, PlanRequest } from '../../src/oracle/plan-types.js';
import type { Preference } from '../../src/oracle/preferences.js';
import { asScheme, expertGroup, expertRule, gb10, gpuFamilies, moeBackend, registered } from './declared-backends.js';

const gpu = (sm: number, memoryBytes?: number): CudaDeviceInfo => ({ type: 'cuda', name: 'some GPU', sm, memoryBytes });
const gibibytes = 2 ** 30;

const b12xEverywhere = (effect: 'prefer' | 'require'): Preference => ({
  effect,
  backend: 'b12x',
  scope: {},
  source: { type: 'flag', text: '--moe-backend flashinfer_b12x' },
});

/** A kernel family of each kind that scenarios need, named after what it stands for. */
const routesItself = registered(
  moeBackend('trtllm', 100, [
    expertRule('fp8-block', ['fp8.block128'], {
      device: { type: 'cuda', sm: [100, 103] },
      numExperts: { max: 512 },
      topK: { max: 32 },
      arithmetic: asScheme,
    }),
  ]),
);
const shortCalls = registered(
  moeBackend('flashinfer', 100, [
    expertRule('fp8', ['fp8.channel'], {
      device: { type: 'cuda', sm: [90] },
      tokens: { max: 16_384 },
      parallel: ['ep'],
      arithmetic: asScheme,
    }),
  ]),
);
const portable = registered(
  moeBackend('portable', 10, [
    expertRule('fp8', ['fp8.channel', 'fp8.block128'], {
      parallel: ['tp', 'ep'],
      arithmetic: asScheme,
      activations: [{ type: 'silu' }, { type: 'swiglu', alpha: {}, limit: { min: 0 } }],
    }),
  ]),
);
const dropsClamp = registered(moeBackend('noclamp', 100, [expertRule('fp8', ['fp8.block128'], { arithmetic: asScheme })]));
const weightOnly = registered(moeBackend('marlin', 100, [expertRule('w4a16', ['nvfp4.w4a4', 'nvfp4.w4a16'])]));
const aligned = (name: string, multipleOf: number) =>
  moeBackend(name, multipleOf, [
    expertRule('r', ['fp8.channel'], {
      sizes: { hiddenSize: { multipleOf }, moeIntermediateSize: { multipleOf } },
      parallel: ['tp'],
    }),
  ]);

interface Scenario {
  readonly what: string;
  readonly layers: readonly LayerSpec[];
  readonly device: CudaDeviceInfo;
  readonly backends: readonly ErasedMoeBackend[];
  readonly changes?: Partial<PlanRequest>;
  /** Per layer, with intervals where several kernels share it; empty = unserved. */
  readonly served: readonly string[];
  /** Must stand in the refusals, the reasons for the choice, the notices, or the one error of an unservable plan. */
  readonly says: readonly (string | RegExp)[];
}

const scenarios: readonly Scenario[] = [
  {
    what: 'an FP4-only backend preferred on NVFP4, FP8 block and BF16 draft experts: three groups, three backends',
    layers: [expertGroup(0, 'nvfp4.w4a16'), expertGroup(1, 'fp8.block128'), expertGroup(2, 'bf16', { role: 'draft' })],
    device: gb10,
    backends: gpuFamilies(),
    changes: { preferences: [b12xEverywhere('prefer')] },
    served: ['b12x', 'cutlass', 'triton'],
    says: [
      'preferred by --moe-backend flashinfer_b12x (flag)',
      'b12x does not serve 2 of the 3 layers it was asked for',
      'it runs nvfp4.w4a4 and nvfp4.w4a16; these weights are fp8.block128',
    ],
  },
  {
    what: 'the same backend required: one error for every group it cannot serve, before a weight is read',
    layers: [expertGroup(0, 'nvfp4.w4a16'), expertGroup(1, 'fp8.block128'), expertGroup(2, 'bf16', { role: 'draft' })],
    device: gb10,
    backends: gpuFamilies(),
    changes: { preferences: [b12xEverywhere('require')] },
    served: ['b12x', '', ''],
    says: [
      'No backend serves 2 of 3 layers (2 groups)',
      'experts fp8.block128 (model.layers.1.mlp.experts)',
      'draft experts bf16 (model.layers.2.mlp.experts)',
      'It would be served by cutlass or triton without --moe-backend flashinfer_b12x (flag).',
    ],
  },
  {
    what: 'NVFP4 W4A16 on SM 12.0 without any wish: the native backend, not a portable one',
    layers: [expertGroup(0, 'nvfp4.w4a16')],
    device: gpu(120),
    backends: [...gpuFamilies(), ...weightOnly],
    served: ['b12x'],
    says: ['priority 100, the highest of 3 rules that cover it'],
  },
  {
    what: 'the same where the portable one was measured faster: kept, and why',
    layers: [expertGroup(0, 'nvfp4.w4a16')],
    device: gpu(120),
    backends: [...gpuFamilies(), ...weightOnly],
    changes: {
      evidence: {
        measured: {
          environment: 'this machine',
          classes: [
            {
              layerClass: layerClassOf(expertGroup(0, 'nvfp4.w4a16')),
              measuredAt: '2026-01-02T03:04:05Z',
              times: [
                { backend: 'b12x', rule: 'w4a16', numTokens: 1, medianUs: 90 },
                { backend: 'marlin', rule: 'w4a16', numTokens: 1, medianUs: 60 },
                { backend: 'triton', rule: 'weight-only', numTokens: 1, medianUs: 200 },
              ],
            },
          ],
        },
      },
    },
    served: ['marlin'],
    says: [/measured/],
  },
  {
    what: '640 experts on a kernel for 512: refused at the plan, not at the first request',
    layers: [expertGroup(0, 'fp8.block128', { numExperts: 640 })],
    device: gpu(100),
    backends: [...routesItself, ...portable],
    served: ['portable'],
    says: ['it takes at most 512 experts; the layer has 640'],
  },
  {
    what: 'a clamp of 10 in FP8 blocks: no backend that does not declare the limit',
    layers: [expertGroup(0, 'fp8.block128', { activation: { type: 'swiglu', alpha: 1, limit: 10 } })],
    device: gpu(100),
    backends: [...dropsClamp, ...portable],
    served: ['portable'],
    says: ['it runs silu; the layer has swiglu with alpha 1 and limit 10'],
  },
  {
    what: '1280 by tensor parallel 8: each alignment that is missed, and what would meet it',
    layers: [expertGroup(0, 'fp8.channel', { moeIntermediateSize: 160, parallel: { ...singleRank, tpSize: 8 } })],
    device: gpu(90),
    backends: registered(aligned('by64', 64), aligned('by128', 128), aligned('by256', 256)),
    served: [''],
    says: [
      'by64: it would serve it if moe_intermediate_size were a multiple of 64: it is 160 after tensor parallel 8; pad to 192, or use tensor parallel 4',
      'by128: it would serve it if moe_intermediate_size were a multiple of 128: it is 160 after tensor parallel 8; pad to 256, or use tensor parallel 2',
      'by256: it would serve it if moe_intermediate_size were a multiple of 256: it is 160 after tensor parallel 8; pad to 256, or use no tensor parallel',
    ],
  },
  {
    what: 'calls of more tokens than a kernel survives, alone: refused with the number that would do',
    layers: [expertGroup(0, 'fp8.channel', { parallel: { ...singleRank, epSize: 8 } })],
    device: gpu(90),
    backends: shortCalls,
    changes: { maxNumTokens: 32_768 },
    served: [''],
    says: ['--max-num-batched-tokens 16384 would do'],
  },
  {
    what: 'the same beside a backend for longer calls: composed, with the switch point',
    layers: [expertGroup(0, 'fp8.channel', { parallel: { ...singleRank, epSize: 8 } })],
    device: gpu(90),
    backends: [...shortCalls, ...portable],
    changes: { maxNumTokens: 32_768, preferences: [{ ...b12xEverywhere('prefer'), backend: 'flashinfer' }] },
    served: ['flashinfer 1–16384 + portable 16385–32768'],
    says: ['takes the calls that flashinfer/fp8 does not'],
  },
  {
    what: 'batch invariance on MXFP4: who has it, and that none covers the layer',
    layers: [expertGroup(0, 'mxfp4.w4a16')],
    device: gpu(90),
    backends: [
      ...registered(moeBackend('fast', 2, [expertRule('mxfp4', ['mxfp4.w4a16'])])),
      ...registered(
        moeBackend('steady', 1, [
          expertRule('bf16', ['bf16', 'fp8.channel'], { batchInvariant: true }),
          expertRule('fp8', ['bf16', 'fp8.channel'], { batchInvariant: true }),
        ]),
      ),
    ],
    changes: { requirements: { batchInvariant: true } },
    served: [''],
    says: [
      'Batch-invariant are only steady/bf16 and steady/fp8; none covers these layers of mxfp4.w4a16.',
      'It would be served by fast without --batch-invariant.',
    ],
  },
  {
    what: 'a W4A4 checkpoint where only a weight-only kernel fits: served, and marked as wider',
    layers: [expertGroup(0, 'nvfp4.w4a4')],
    device: gpu(80),
    backends: weightOnly,
    served: ['marlin'],
    says: ['"numerics":"wider"'],
  },
  {
    what: 'the same under a policy that does not allow it: refused by name',
    layers: [expertGroup(0, 'nvfp4.w4a4')],
    device: gpu(80),
    backends: weightOnly,
    changes: { numerics: { default: 'same' } },
    served: [''],
    says: ['its arithmetic on nvfp4.w4a4 is "wider" and --numerics same does not allow that', 'with --numerics auto'],
  },
  {
    what: 'a backend that keeps a second copy of 23 GB on a card of 32 GB: refused by bytes, the next one taken',
    layers: [expertGroup(0, 'nvfp4.w4a16')],
    device: gpu(120, 32 * gibibytes),
    backends: registered(
      moeBackend('repacks', 100, [expertRule('r', ['nvfp4.w4a16'])], {
        footprint: () => ({ residentBytes: 2 * 23 * gibibytes, preparePeakBytes: gibibytes, workspaceBytes: () => 0 }),
      }),
      moeBackend('inplace', 1, [expertRule('r', ['nvfp4.w4a16'])], {
        footprint: () => ({ residentBytes: 23 * gibibytes, preparePeakBytes: gibibytes, workspaceBytes: () => 0 }),
      }),
    ),
    served: ['inplace'],
    says: ['with it this layer takes 46.0 GiB instead of 23.0 GiB, and the plan would not fit into the 32.0 GiB of some GPU'],
  },
  {
    what: 'nothing that fits at all: refused with the sum, before a byte is allocated',
    layers: [expertGroup(0, 'nvfp4.w4a16')],
    device: gpu(120, 16 * gibibytes),
    backends: registered(
      moeBackend('inplace', 1, [expertRule('r', ['nvfp4.w4a16'])], {
        footprint: () => ({ residentBytes: 23 * gibibytes, preparePeakBytes: gibibytes, workspaceBytes: () => 0 }),
      }),
    ),
    served: ['inplace'],
    says: ['The plan does not fit: 23.0 GiB of packed weights and 1.0 GiB while the largest layer is packed make 24.0 GiB'],
  },
];

function describeBindings({ bindings }: LayerPlan): string {
  if (bindings.length === 1) return bindings.map(({ backend }) => backend).join('');
  return bindings.map(({ backend, tokens }) => `${backend} ${tokens.min}–${tokens.max}`).join(' + ');
}

/** Everything that a person could read. */
function textOf(made: Plan): string {
  return [JSON.stringify(made).replaceAll('\\"', '"'), isServable(made) ? '' : explainUnserved(made).message].join('\n');
}

describe('scenarios', () => {
  for (const { what, layers, device, backends, changes, served, says } of scenarios) {
    it(what, () => {
      const made = plan({ layers, device, moeBackends: backends, linearBackends: [], maxNumTokens: 8192, ...changes });
      expect(made.layers.map(describeBindings)).to.deep.equal(served);
      const text = textOf(made);
      for (const said of says) {
        if (typeof said === 'string') expect(text).to.contain(said);
        else expect(text).to.match(said);
      }
    });
  }

  it('a plugin built for an older contract: skipped with the reason, and the others serve', async () => {
    const host = createPluginHost({});
    const backend = moeBackend('current', 1, [expertRule('bf16', ['bf16'])]);
    const pluginFor = (name: string, contract: number) =>
      definePlugin({
        name,
        version: '1.0.0',
        contract,
        apply: (to) => {
          to.addMoeBackend(backend);
        },
      });
    const error: unknown = await loadPlugin(host, pluginFor('old', contractVersion - 1), 'old').catch((thrown: unknown) => thrown);
    expect(isMoeError(error) && error.code).to.equal('MOE_PLUGIN_CONTRACT');
    await loadPlugin(host, pluginFor('current', contractVersion), 'current');
    const made = plan({
      layers: [expertGroup(0, 'bf16')],
      device: gb10,
      moeBackends: host.moeBackends,
      linearBackends: [],
      maxNumTokens: 8,
    });
    expect(made.layers.map(describeBindings)).to.deep.equal(['current']);
  });

  it('one rank lacks a plugin: its hash differs before anything is exchanged, and the difference names it', () => {
    const rankPlan = (epRank: number, moeBackends: readonly ErasedMoeBackend[]) => {
      const experts = Array.from({ length: 4 }, (_, index) => 4 * epRank + index);
      const layers = [expertGroup(0, 'fp8.channel', { experts, parallel: { ...singleRank, epRank, epSize: 2 } })];
      return plan({ layers, device: gpu(90), moeBackends, linearBackends: [], maxNumTokens: 8192 });
    };
    const everything = [...shortCalls, ...portable];
    expect(rankPlan(1, everything).hash).to.equal(rankPlan(0, everything).hash);
    const lacking = rankPlan(1, portable);
    expect(lacking.hash).not.to.equal(rankPlan(0, everything).hash);
    expect(diffPlans(rankPlan(0, everything), lacking).sentences.join('\n')).to.contain(
      'moved from flashinfer/fp8 to portable/fp8: no backend named flashinfer is installed any more.',
    );
  });
});
