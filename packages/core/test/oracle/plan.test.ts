import { expect } from 'chai';
import { singleRank, type ExpertGroupSpec } from '../../src/layer-spec.js';
import { explainUnserved, isServable, summarizePlan } from '../../src/oracle/explain.js';
import type { ErasedMoeBackend } from '../../src/oracle/erased-backend.js';
import { plan } from '../../src/oracle/plan.js';
import type { LayerPlan, Plan, PlanRequest } from '../../src/oracle/plan-types.js';
import type { Preference, PreferenceScope } from '../../src/oracle/preferences.js';
import {
  asScheme,
  expertGroup,
  expertRule,
  gb10,
  gpuFamilies,
  linear,
  linearBackend,
  linearRule,
  moeBackend,
  registered,
  registeredLinear,
} from './declared-backends.js';

const mixed = [expertGroup(0, 'nvfp4.w4a4'), expertGroup(1, 'fp8.block128'), expertGroup(2, 'bf16', { role: 'draft' })];

function request(changes: Partial<PlanRequest> = {}): PlanRequest {
  return { layers: mixed, device: gb10, moeBackends: gpuFamilies(), linearBackends: [], maxNumTokens: 1024, ...changes };
}

function wish(
  effect: Preference['effect'],
  backend: string,
  scope: PreferenceScope = {},
  source: Preference['source']['type'] = 'flag',
): Preference {
  return { effect, backend, scope, source: { type: source, text: `--moe-backend ${backend}` } };
}

function backendsOf({ layers }: Plan): string[] {
  return layers.map(({ bindings }) => bindings.map(({ backend }) => backend).join('+'));
}

function only({ layers }: Plan): LayerPlan {
  const [layer] = layers;
  if (layer === undefined) throw new Error('the plan has no layer');
  return layer;
}

/** The plan of one group under one declared rule. */
function planOne(group: ExpertGroupSpec, moeBackends: readonly ErasedMoeBackend[], changes: Partial<PlanRequest> = {}): LayerPlan {
  return only(plan(request({ layers: [group], moeBackends, ...changes })));
}

describe('plan', () => {
  describe('on a checkpoint of NVFP4 and FP8 experts with a BF16 draft, SM 12.1', () => {
    it('binds three groups to three backends when an FP4-only backend is preferred for all', () => {
      const made = plan(request({ preferences: [wish('prefer', 'b12x')] }));
      expect(backendsOf(made)).to.deep.equal(['b12x', 'cutlass', 'triton']);
      expect(made.unserved).to.deep.equal([]);
      expect(made.layers[1]?.bindings[0]?.because).to.contain(
        '--moe-backend b12x (flag) prefers b12x, which does not serve it: it runs nvfp4',
      );
      expect(made.notices).to.have.length(1);
      expect(made.notices[0]).to.match(
        /b12x does not serve 2 of the 3 layers it was asked for: .*served by triton instead.*served by cutlass instead/,
      );
    });

    it('names every group, the reasons, what would serve, and the source when that backend is required', () => {
      const made = plan(request({ preferences: [wish('require', 'b12x')] }));
      expect(backendsOf(made)).to.deep.equal(['b12x', '', '']);
      expect(isServable(made)).to.equal(false);
      const error = explainUnserved(made);
      expect(error.code).to.equal('MOE_UNSUPPORTED_LAYERS');
      expect(error.message).to.contain('No backend serves 2 of 3 layers (2 groups) on NVIDIA GB10 (SM 12.1)');
      expect(error.message).to.contain('experts fp8.block128 (model.layers.1.mlp.experts)');
      expect(error.message).to.contain('draft experts bf16 (model.layers.2.mlp.experts)');
      expect(error.message).to.contain('it runs nvfp4.w4a4 and nvfp4.w4a16; these weights are fp8.block128.');
      expect(error.message).to.contain('--moe-backend b12x (flag) requires b12x here.');
      expect(error.message).to.contain('It would be served by cutlass or triton without --moe-backend b12x (flag).');
      expect((error.details.groups as { layers: string[] }[]).map(({ layers }) => layers)).to.have.deep.members([
        ['model.layers.1.mlp.experts'],
        ['model.layers.2.mlp.experts'],
      ]);
    });

    for (const source of ['flag', 'environment', 'file'] as const) {
      for (const global of ['flag', 'environment', 'file'] as const) {
        it(`lets FP8 go elsewhere by ${source} beside a global preference by ${global}`, () => {
          const preferences = [
            wish('require', 'b12x', {}, global),
            wish('prefer', 'triton', { kind: 'moe', family: 'fp8' }, source),
            wish('prefer', 'triton', { role: 'draft' }),
          ];
          expect(backendsOf(plan(request({ preferences })))).to.deep.equal(['b12x', 'triton', 'triton']);
        });
      }
    }

    it('takes the best of each without any preference', () => {
      const made = plan(request());
      expect(backendsOf(made)).to.deep.equal(['b12x', 'cutlass', 'triton']);
      expect(made.layers[1]?.bindings[0]?.because).to.equal('priority 50, the highest of 2 rules that cover it');
      expect(made.notices).to.deep.equal([]);
    });

    it('keeps every rule of every backend in exactly one list', () => {
      for (const layer of plan(request()).layers) {
        const all = [...layer.bindings, ...layer.eligible, ...layer.refused].map(({ backend, rule }) => `${backend}/${rule}`);
        expect(all).to.have.members(['b12x/w4a4', 'b12x/w4a16', 'cutlass/fp8', 'cutlass/nvfp4', 'triton/bf16', 'triton/weight-only']);
      }
    });

    it('summarizes it in a row per kind, role, scheme and kernel', () => {
      const rows = summarizePlan(plan(request({ layers: [...mixed, expertGroup(3, 'nvfp4.w4a4')] })));
      expect(rows.map(({ role, scheme, backend, numLayers, numerics }) => [role, scheme, backend, numLayers, numerics])).to.deep.equal([
        ['target', 'fp8.block128', 'cutlass', 1, 'same'],
        ['target', 'nvfp4.w4a4', 'b12x', 2, 'wider'],
        ['draft', 'bf16', 'triton', 1, 'same'],
      ]);
    });
  });

  describe('dimensions', () => {
    const rule = expertRule('one', ['nvfp4.w4a4'], {
      device: { type: 'cuda', sm: [120, 121] },
      sizes: { hiddenSize: { multipleOf: 128, min: 256 }, moeIntermediateSize: { multipleOf: 128 } },
      numExperts: { max: 512 },
      topK: { max: 8 },
      tokens: { max: 16_384 },
    });
    const backend = registered(moeBackend('one', 1, [rule]));
    const cases: [what: string, group: ExpertGroupSpec, changes: Partial<PlanRequest>, dimension: string, message: string][] = [
      ['another scheme', expertGroup(0, 'fp8.channel'), {}, 'scheme', 'it runs nvfp4.w4a4; these weights are fp8.channel.'],
      [
        'schemes that differ inside',
        expertGroup(0, 'nvfp4.w4a4', { schemes: { w13: 'nvfp4.w4a4', w2: 'fp8.channel' } }),
        {},
        'mixedProjections',
        'its rule does not cover different schemes for gate/up and down.',
      ],
      [
        'another SM',
        expertGroup(0, 'nvfp4.w4a4'),
        { device: { type: 'cuda', name: 'NVIDIA H100', sm: 90, memoryBytes: undefined } },
        'device',
        'it needs SM 12.0 or SM 12.1; the device is NVIDIA H100 (SM 9.0).',
      ],
      [
        'a CPU',
        expertGroup(0, 'nvfp4.w4a4'),
        { device: { type: 'cpu', name: 'some CPU', architecture: 'x64', features: [], numThreads: 2, memoryBytes: undefined } },
        'device',
        'it needs a CUDA device of SM 12.0 or SM 12.1; the device is some CPU (CPU, x64).',
      ],
      [
        'an activation with a clamp',
        expertGroup(0, 'nvfp4.w4a4', { activation: { type: 'swiglu', alpha: 1.702, limit: 7 } }),
        {},
        'activation',
        'it runs silu; the layer has swiglu with alpha 1.702 and limit 7.',
      ],
      [
        'an activation that nobody knows',
        expertGroup(0, 'nvfp4.w4a4', { activation: { type: 'other', name: 'situ' } }),
        {},
        'activation',
        'the activation "situ" is not one that the core knows, so no rule can cover it.',
      ],
      [
        'a size that tensor parallel broke',
        expertGroup(0, 'nvfp4.w4a4', { moeIntermediateSize: 160, parallel: { tpRank: 0, tpSize: 8, epRank: 0, epSize: 1 } }),
        {},
        'moeIntermediateSize',
        'it would serve it if moe_intermediate_size were a multiple of 128: it is 160 after tensor parallel 8; pad to 256, or use tensor parallel 2.',
      ],
      [
        'tensor parallel',
        expertGroup(0, 'nvfp4.w4a4', { parallel: { tpRank: 0, tpSize: 2, epRank: 0, epSize: 1 } }),
        {},
        'parallel',
        'its rule does not cover tensor parallel (size 2); it would serve it on one rank.',
      ],
      [
        'a hidden size out of range',
        expertGroup(0, 'nvfp4.w4a4', { hiddenSize: 128 }),
        {},
        'hiddenSize',
        'it would serve it if hidden_size were at least 256: it is 128.',
      ],
      [
        'a size that is not known',
        expertGroup(0, 'nvfp4.w4a4', { hiddenSize: NaN }),
        {},
        'hiddenSize',
        'hidden_size is not known (NaN), so it cannot be shown to be covered.',
      ],
      [
        'a top_k that is not known',
        expertGroup(0, 'nvfp4.w4a4', { topK: undefined as never }),
        {},
        'topK',
        'top_k is not known (undefined), so it cannot be shown to be covered.',
      ],
      [
        'a bias of which nothing is known',
        expertGroup(0, 'nvfp4.w4a4', { hasBias: undefined as never }),
        {},
        'bias',
        'it is not known whether the layer needs biases on the projections, and its rule covers only layers without.',
      ],
      [
        '640 experts',
        expertGroup(0, 'nvfp4.w4a4', { numExperts: 640 }),
        {},
        'numExperts',
        'it takes at most 512 experts; the layer has 640.',
      ],
      ['top 10', expertGroup(0, 'nvfp4.w4a4', { topK: 10 }), {}, 'topK', 'it takes at most 8 top_k; the layer has 10.'],
      ['biases', expertGroup(0, 'nvfp4.w4a4', { hasBias: true }), {}, 'bias', 'its rule does not cover biases on the projections.'],
      [
        'batch invariance',
        expertGroup(0, 'nvfp4.w4a4'),
        { requirements: { batchInvariant: true } },
        'batchInvariant',
        'its rule does not cover batch invariance, which was asked for.',
      ],
      [
        'graph capture',
        expertGroup(0, 'nvfp4.w4a4'),
        { requirements: { graphCapture: true } },
        'graphCapture',
        'its rule does not cover graph capture, which was asked for.',
      ],
      [
        'calls of 20000 tokens',
        expertGroup(0, 'nvfp4.w4a4'),
        { maxNumTokens: 20_000 },
        'tokens',
        'it takes calls of 1 to 16384 tokens, and no rule that is left takes 16385 to 20000; --max-num-batched-tokens 16384 would do.',
      ],
      [
        'numerics that the policy forbids',
        expertGroup(0, 'nvfp4.w4a4'),
        { numerics: { default: 'auto', byScheme: { nvfp4: 'same' } } },
        'numerics',
        'its arithmetic on nvfp4.w4a4 is "wider" and --numerics same does not allow that.',
      ],
      [
        'a rule in quarantine',
        expertGroup(0, 'nvfp4.w4a4'),
        { evidence: { quarantined: [{ backend: 'one', scheme: 'nvfp4.w4a4', reason: 'It crashed yesterday.' }] } },
        'quarantined',
        'it is quarantined: It crashed yesterday.',
      ],
      [
        'columns that are no whole groups',
        expertGroup(0, 'nvfp4.w4a4', { hiddenSize: 2056 }),
        {},
        'hiddenSize',
        'it would serve it if hidden_size were a multiple of 128: it is 2056; 2176 would do.',
      ],
    ];
    for (const [what, group, changes, dimension, message] of cases) {
      it(`refuses ${what} in a sentence`, () => {
        const layer = planOne(group, backend, changes);
        expect(layer.bindings).to.deep.equal([]);
        const reason = layer.refused[0]?.reasons.find((one) => one.dimension === dimension);
        expect(reason?.message).to.equal(message);
      });
    }

    it('reports all of them at once', () => {
      const group = expertGroup(0, 'fp8.channel', { hiddenSize: 100, topK: 20, hasBias: true, activation: { type: 'other', name: 'x' } });
      const reasons = planOne(group, backend, { requirements: { batchInvariant: true } }).refused[0]?.reasons ?? [];
      expect(reasons.map(({ dimension }) => dimension)).to.have.members([
        'scheme',
        'activation',
        'hiddenSize',
        'topK',
        'bias',
        'batchInvariant',
      ]);
    });

    const unknowns: [field: string, changes: Record<string, unknown>][] = [
      ...['hiddenSize', 'moeIntermediateSize', 'topK', 'hasBias'].map((field): [string, Record<string, unknown>] => [
        field,
        { [field]: undefined },
      ]),
      ...['tpSize', 'epSize'].map((field): [string, Record<string, unknown>] => [
        field,
        { parallel: { ...singleRank, [field]: undefined } },
      ]),
      ['w13', { schemes: { w13: undefined, w2: 'nvfp4.w4a4' } }],
      ['alpha', { activation: { type: 'swiglu', limit: 7 } }],
      ['limit', { activation: { type: 'swiglu', alpha: 1.702 } }],
    ];
    for (const [field, changes] of unknowns) {
      it(`does not take a ${field} that nobody knows for one that is covered`, () => {
        const anything = expertRule('any', ['nvfp4.w4a4'], {
          activations: [{ type: 'silu' }, { type: 'swiglu', alpha: {}, limit: {} }],
          parallel: ['tp', 'ep'],
        });
        const group = { ...expertGroup(0, 'nvfp4.w4a4'), ...changes } as ExpertGroupSpec;
        expect(planOne(group, registered(moeBackend('any', 1, [anything]))).bindings).to.deep.equal([]);
      });
    }

    it('refuses columns that the format cannot have, whatever the rule says', () => {
      const layer = planOne(
        expertGroup(0, 'mxfp4.w4a16', { hiddenSize: 2000 }),
        registered(moeBackend('any', 1, [expertRule('any', ['mxfp4.w4a16'])])),
      );
      expect(layer.refused[0]?.reasons.map(({ message }) => message)).to.deep.equal([
        'mxfp4.w4a16 has one scale per 32 columns, and hidden_size is 2000; 2016 would do.',
      ]);
    });

    it('names the backend that would have to pack a foreign layout, and what is wrong with it', () => {
      const reader = registered(moeBackend('reader', 1, [expertRule('r', ['nvfp4.w4a4'], { layout: 'owner/tiles@1' })]));
      const owner = registered(moeBackend('owner', 0, [expertRule('r', ['bf16'], { layout: 'owner/tiles@1' })]));
      const reasonOf = (backends: readonly ErasedMoeBackend[]) =>
        planOne(expertGroup(0, 'nvfp4.w4a4'), backends).refused.find(({ backend: name }) => name === 'reader')?.reasons;
      expect(reasonOf(reader)?.map(({ message }) => message)).to.deep.equal([
        'it reads the layout owner/tiles@1, which owner packs, and owner is not installed.',
      ]);
      expect(reasonOf([...reader, ...owner])?.map(({ message }) => message)).to.deep.equal([
        'it reads the layout owner/tiles@1, which owner packs, and owner does not cover this layer.',
      ]);
    });

    it('takes activation parameters within the range of the rule', () => {
      const clamped = registered(
        moeBackend('clamped', 1, [
          expertRule('r', ['mxfp4.w4a16'], { activations: [{ type: 'swiglu', alpha: { min: 1.702, max: 1.702 }, limit: { min: 1 } }] }),
        ]),
      );
      const group = (alpha: number, limit: number) => expertGroup(0, 'mxfp4.w4a16', { activation: { type: 'swiglu', alpha, limit } });
      expect(planOne(group(1.702, 7), clamped).bindings).to.have.length(1);
      for (const [alpha, limit] of [
        [1, 7],
        [1.702, 0.5],
        [NaN, 7],
        [1.702, Infinity],
      ] as const)
        expect(planOne(group(alpha, limit), clamped).bindings, `${alpha} ${limit}`).to.deep.equal([]);
    });

    it('keeps what refuse() says beside the rules, and counts a refuse() that throws as a no', () => {
      const narrow = registered(
        moeBackend('narrow', 1, [expertRule('r', ['bf16'])], { refuse: () => ({ dimension: 'backend', message: 'not on Thursdays.' }) }),
      );
      const broken = registered(
        moeBackend('broken', 1, [expertRule('r', ['bf16'])], {
          refuse: () => {
            throw new Error('boom');
          },
        }),
      );
      expect(planOne(expertGroup(0, 'bf16'), narrow).refused[0]?.reasons[0]?.message).to.equal('not on Thursdays.');
      expect(planOne(expertGroup(0, 'fp8.channel'), narrow).refused[0]?.reasons).to.have.length(2);
      expect(planOne(expertGroup(0, 'bf16'), broken).refused[0]?.reasons[0]?.message).to.equal('its refuse() failed: boom.');
    });

    it('counts a priority or a footprint that is no number as a no', () => {
      const odd = (changes: Parameters<typeof moeBackend<'bf16'>>[3]) =>
        planOne(expertGroup(0, 'bf16'), registered(moeBackend('odd', 1, [expertRule('r', ['bf16'])], changes))).refused[0]?.reasons[0]
          ?.message;
      expect(odd({ priority: () => NaN })).to.equal('its priority() is not a number.');
      expect(odd({ footprint: () => ({ residentBytes: -1, preparePeakBytes: 0, workspaceBytes: () => 0 }) })).to.equal(
        'its footprint is not known: residentBytes is -1.',
      );
      expect(odd({ footprint: () => ({ residentBytes: 1, preparePeakBytes: 0, workspaceBytes: () => NaN }) })).to.equal(
        'its footprint is not known: workspaceBytes is NaN.',
      );
    });

    it('lets only the owner of a layout pack it, and others read it', () => {
      const reader = moeBackend('reader', 9, [expertRule('r', ['bf16'], { layout: 'owner/rows@1' })]);
      const owner = moeBackend('owner', 1, [expertRule('p', ['bf16'], { layout: 'owner/rows@1' })]);
      expect(planOne(expertGroup(0, 'bf16'), registered(reader)).refused[0]?.reasons[0]?.dimension).to.equal('layout');
      const [binding] = planOne(expertGroup(0, 'bf16'), registered(reader, owner)).bindings;
      expect([binding?.backend, binding?.packedBy]).to.deep.equal(['reader', { backend: 'owner', rule: 'p' }]);
    });
  });

  describe('preferences', () => {
    it('ends at a required backend that is not installed, saying so', () => {
      const made = plan(request({ preferences: [wish('require', 'marlin', { kind: 'moe' })] }));
      expect(made.unserved).to.have.length(3);
      expect(explainUnserved(made).message).to.contain('requires marlin here, which is not installed for this kind of layer.');
      expect(made.notices).to.deep.equal([
        '--moe-backend marlin (flag): no plugin with a backend named marlin is installed; installed: b12x, cutlass and triton.',
      ]);
    });

    it('falls through a preferred backend that is not installed', () => {
      const made = plan(request({ preferences: [wish('prefer', 'marlin')] }));
      expect(backendsOf(made)).to.deep.equal(['b12x', 'cutlass', 'triton']);
      expect(made.layers[0]?.bindings[0]?.because).to.contain(
        'prefers marlin, which does not serve it: no backend of that name is installed for this kind of layer',
      );
    });

    it('says when a setting matches nothing', () => {
      const made = plan(request({ preferences: [wish('prefer', 'b12x', { layers: 'model.layer.*' })] }));
      expect(made.notices).to.deep.equal(['--moe-backend b12x (flag): matches no layer of this model.']);
    });

    it('uses a rule that is only for those who name it when somebody does', () => {
      const backends = [
        ...gpuFamilies(),
        ...registered(
          moeBackend('emulation', 1000, [expertRule('slow', ['fp8.block128'], { onlyWhenNamed: 'It is slow.', layout: 'emulation/x@1' })]),
        ),
      ];
      const layers = [expertGroup(1, 'fp8.block128')];
      const auto = plan(request({ layers, moeBackends: backends }));
      expect(backendsOf(auto)).to.deep.equal(['cutlass']);
      expect(only(auto).refused.find(({ backend }) => backend === 'emulation')?.reasons[0]?.message).to.equal(
        'it is used only when somebody names emulation: It is slow.',
      );
      expect(backendsOf(plan(request({ layers, moeBackends: backends, preferences: [wish('prefer', 'emulation')] })))).to.deep.equal([
        'emulation',
      ]);
    });
  });

  describe('kernels that are not built', () => {
    const backends = registered(
      moeBackend('planned', 9, [expertRule('r', ['bf16'], { layout: 'planned/x@1' })], { missing: () => 'The CUDA kernels come later.' }),
      moeBackend('plain', 1, [expertRule('r', ['bf16'], { layout: 'plain/x@1' })]),
    );
    it('are refused on a device that is there', () => {
      const layer = planOne(expertGroup(0, 'bf16'), backends);
      expect(layer.bindings[0]?.backend).to.equal('plain');
    });

    it('are bound and marked when the plan assumes them', () => {
      const made = plan(
        request({
          layers: [expertGroup(0, 'bf16')],
          moeBackends: registered(
            moeBackend('planned', 9, [expertRule('r', ['bf16'], { layout: 'planned/x@1' })], { missing: () => 'later' }),
          ),
          assumeBuilt: true,
        }),
      );
      expect(only(made).bindings[0]).to.include({ backend: 'planned', built: false });
      expect(made.assumesBuilt).to.equal(true);
    });
  });

  describe('workload intervals', () => {
    const decode = expertRule('decode', ['bf16'], { tokens: { max: 64 }, layout: 'a/rows@1' });
    const prefill = expertRule('prefill', ['bf16'], { tokens: { min: 33 }, layout: 'a/rows@1' });
    it('composes rules where none takes every call, and shows the switch', () => {
      const layer = planOne(expertGroup(0, 'bf16'), registered(moeBackend('a', 1, [decode, prefill])));
      expect(layer.bindings.map(({ rule, tokens }) => [rule, tokens])).to.deep.equal([
        ['decode', { min: 1, max: 64 }],
        ['prefill', { min: 65, max: 1024 }],
      ]);
      expect(layer.bindings[1]?.because).to.equal('takes the calls that a/decode does not');
    });

    it('counts the weights once when the layouts agree, twice when not', () => {
      const group = expertGroup(0, 'bf16');
      const one = planOne(group, registered(moeBackend('a', 1, [decode, prefill])));
      const two = planOne(group, registered(moeBackend('a', 1, [decode, { ...prefill, layout: 'a/tiles@1' }])));
      expect(two.bytes.residentBytes).to.equal(2 * one.bytes.residentBytes);
    });

    it('takes one kernel for all calls rather than two copies of the weights', () => {
      const backends = registered(moeBackend('a', 9, [decode]), moeBackend('b', 1, [expertRule('all', ['bf16'], { layout: 'b/rows@1' })]));
      const layer = planOne(expertGroup(0, 'bf16'), backends);
      expect(layer.bindings.map(({ backend }) => backend)).to.deep.equal(['b']);
      expect(layer.bindings[0]?.because).to.contain(
        'a/decode comes first, but takes calls of 1 to 64 tokens only and would keep the weights twice',
      );
    });

    it('keeps two copies when somebody names the smaller kernel', () => {
      const backends = registered(moeBackend('a', 9, [decode]), moeBackend('b', 1, [expertRule('all', ['bf16'], { layout: 'b/rows@1' })]));
      const layer = planOne(expertGroup(0, 'bf16'), backends, { preferences: [wish('prefer', 'a')] });
      expect(layer.bindings.map(({ backend }) => backend)).to.deep.equal(['a', 'b']);
    });

    it('prefers a filler of the layout that is there', () => {
      const backends = registered(
        moeBackend('a', 9, [decode, { ...prefill, id: 'prefill' }]),
        moeBackend('b', 5, [expertRule('tail', ['bf16'], { tokens: { min: 65 }, layout: 'b/rows@1' })]),
      );
      const layer = planOne(expertGroup(0, 'bf16'), backends, { preferences: [] });
      expect(layer.bindings.map(({ backend, rule }) => `${backend}/${rule}`)).to.deep.equal(['a/decode', 'a/prefill']);
    });

    it('fills a gap by as many kernels as it takes, each within its interval', () => {
      const rules = [
        expertRule('middle', ['bf16'], { tokens: { min: 100, max: 200 } }),
        expertRule('small', ['bf16'], { tokens: { max: 40 } }),
        expertRule('medium', ['bf16'], { tokens: { min: 30, max: 150 } }),
        expertRule('large', ['bf16'], { tokens: { min: 150 } }),
      ];
      const priorities: Readonly<Record<string, number>> = { middle: 9 };
      const layer = planOne(
        expertGroup(0, 'bf16'),
        registered(moeBackend('a', 1, rules, { priority: (_group, { id }) => priorities[id] ?? 1 })),
      );
      expect(layer.bindings.map(({ rule, tokens }) => [rule, tokens.min, tokens.max])).to.deep.equal([
        ['small', 1, 40],
        ['medium', 41, 99],
        ['middle', 100, 200],
        ['large', 201, 1024],
      ]);
    });

    it('does not fill up a required kernel by others', () => {
      const backends = registered(moeBackend('a', 9, [decode]), moeBackend('b', 1, [expertRule('all', ['bf16'], { layout: 'b/rows@1' })]));
      const layer = planOne(expertGroup(0, 'bf16'), backends, { preferences: [wish('require', 'a')] });
      expect(layer.bindings).to.deep.equal([]);
      expect(layer.refused[0]?.reasons[0]?.message).to.contain('--max-num-batched-tokens 64 would do');
    });
  });

  describe('bytes', () => {
    const big = moeBackend('big', 9, [expertRule('r', ['bf16'], { layout: 'big/x@1' })], {
      footprint: () => ({ residentBytes: 100, preparePeakBytes: 10, workspaceBytes: () => 5 }),
    });
    const small = moeBackend('small', 1, [expertRule('r', ['bf16'], { layout: 'small/x@1' })], {
      footprint: () => ({ residentBytes: 40, preparePeakBytes: 20, workspaceBytes: () => 5 }),
    });
    const layers = [expertGroup(0, 'bf16'), expertGroup(1, 'bf16'), expertGroup(2, 'bf16', { hiddenSize: 4096 })];
    const made = (memoryBytes: number) => plan(request({ layers, moeBackends: registered(big, small), memoryBytes }));

    it('sums what stays and takes the largest of what passes', () => {
      expect(made(1000).bytes).to.deep.equal({
        residentBytes: 300,
        preparePeakBytes: 10,
        workspaceBytes: 5,
        requiredBytes: 310,
        availableBytes: 1000,
        fits: true,
      });
    });

    it('moves as few layers as needed to a cheaper kernel, saying why', () => {
      const tight = made(250);
      expect(backendsOf(tight)).to.deep.equal(['small', 'small', 'big']);
      expect(tight.layers[0]?.bindings[0]?.because).to.contain('big comes first, but with it the plan does not fit into memory');
      expect(tight.layers[0]?.refused.find(({ backend }) => backend === 'big')?.reasons[0]?.dimension).to.equal('bytes');
      expect(tight.bytes.fits).to.equal(true);
    });

    it('counts what packing needs for the moment against what stays', () => {
      const lean = moeBackend('lean', 1, [expertRule('r', ['bf16'])], {
        footprint: () => ({ residentBytes: 30, preparePeakBytes: 500, workspaceBytes: () => 5 }),
      });
      const tight = plan(request({ layers, moeBackends: registered(big, lean, small), memoryBytes: 200 }));
      expect(backendsOf(tight)).to.deep.equal(['small', 'small', 'big']);
      expect(tight.bytes).to.include({ requiredBytes: 200, fits: true });
    });

    it('refuses with the sum what fits in no way', () => {
      const none = made(130);
      expect(none.unserved).to.deep.equal([]);
      expect(isServable(none)).to.equal(false);
      const error = explainUnserved(none);
      expect(error.code).to.equal('MOE_CAPACITY_MEMORY');
      expect(error.message).to.contain('120 B of packed weights and 20 B while the largest layer is packed make 140 B');
      expect(error.message).to.contain('has 130 B for them');
    });

    it('refuses nothing when the memory is not known', () => {
      const { bytes } = plan(request({ layers, moeBackends: registered(big) }));
      expect(bytes).to.include({ fits: true, availableBytes: null });
    });
  });

  describe('numerics', () => {
    const both = registered(
      moeBackend(
        'n',
        1,
        [
          expertRule('same', ['nvfp4.w4a4', 'bf16'], { arithmetic: asScheme, layout: 'n/x@1' }),
          expertRule('wider', ['nvfp4.w4a4', 'bf16'], { layout: 'n/x@1' }),
        ],
        { priority: (_group, rule) => (rule.id === 'same' ? 1 : 2) },
      ),
    );
    for (const [choice, expected] of [
      ['auto', 'wider'],
      ['same', 'same'],
      ['wider', 'wider'],
      ['approximate', 'wider'],
    ] as const) {
      it(`chooses ${expected} under ${choice}`, () => {
        const [binding] = planOne(expertGroup(0, 'nvfp4.w4a4'), both, { numerics: { default: choice } }).bindings;
        expect([binding?.rule, binding?.numerics]).to.deep.equal([expected, expected]);
      });
    }

    it('does not ask for wider inputs where the scheme leaves them alone', () => {
      expect(planOne(expertGroup(0, 'bf16'), both, { numerics: { default: 'wider' } }).bindings[0]?.numerics).to.equal('same');
    });

    it('lets nothing be rounded below float32 when told so', () => {
      const float32 = { ...asScheme, input: { type: 'float', dtype: 'f32' }, intermediate: 'f32', output: 'f32' } as const;
      const rules = [
        expertRule('quantized', ['nvfp4.w4a4'], { layout: 'f/x@1', arithmetic: asScheme }),
        expertRule('rounded', ['nvfp4.w4a4'], { layout: 'f/x@1', arithmetic: { ...float32, input: { type: 'float', dtype: 'bf16' } } }),
        expertRule('between', ['nvfp4.w4a4'], { layout: 'f/x@1', arithmetic: { ...float32, intermediate: 'bf16' } }),
        expertRule('whole', ['nvfp4.w4a4'], { layout: 'f/x@1', arithmetic: float32 }),
      ];
      const layer = planOne(expertGroup(0, 'nvfp4.w4a4'), registered(moeBackend('f', 1, rules)), { numerics: { default: 'float32' } });
      expect(layer.bindings.map(({ rule }) => rule)).to.deep.equal(['whole']);
      expect(layer.refused.map(({ rule, reasons: [reason] }) => [rule, reason?.dimension, reason?.message])).to.deep.equal([
        ['between', 'numerics', 'it rounds what it computes to bf16 and --numerics float32 does not allow that.'],
        ['quantized', 'numerics', 'it quantizes inputs and --numerics float32 does not allow that.'],
        ['rounded', 'numerics', 'it rounds inputs to bf16 and --numerics float32 does not allow that.'],
      ]);
    });

    it('admits the approximate only when told so', () => {
      const rough = registered(
        moeBackend('rough', 1, [
          expertRule('r', ['bf16'], {
            layout: 'rough/x@1',
            arithmetic: { ...asScheme, input: { type: 'own', quantization: { type: 'int8', granularity: 'token' } } },
          }),
        ]),
      );
      expect(planOne(expertGroup(0, 'bf16'), rough).bindings).to.deep.equal([]);
      expect(planOne(expertGroup(0, 'bf16'), rough, { numerics: { default: 'approximate' } }).bindings[0]?.numerics).to.equal(
        'approximate',
      );
    });

    it('marks a group of two schemes by the worse projection', () => {
      const mixedRule = registered(
        moeBackend('m', 1, [expertRule('r', ['nvfp4.w4a4', 'nvfp4.w4a16'], { mixedProjections: true, layout: 'm/x@1' })]),
      );
      const layer = planOne(expertGroup(0, 'nvfp4.w4a16', { schemes: { w13: 'nvfp4.w4a16', w2: 'nvfp4.w4a4' } }), mixedRule);
      expect([layer.scheme, layer.bindings[0]?.numerics]).to.deep.equal(['nvfp4.w4a16+nvfp4.w4a4', 'wider']);
    });
  });

  describe('as data', () => {
    it('survives JSON', () => {
      const made = plan(request());
      const { device, ...rest } = JSON.parse(JSON.stringify(made)) as Plan;
      expect(device.name).to.equal('NVIDIA GB10');
      expect(rest.hash).to.match(/^[0-9a-f]{64}$/);
      expect(rest.layers.map(({ bindings }) => bindings)).to.deep.equal(made.layers.map(({ bindings }) => bindings));
    });

    it('is in the natural order of layers, whatever the order of the request', () => {
      const layers = [expertGroup(10, 'bf16'), expertGroup(2, 'bf16'), expertGroup(1, 'bf16')];
      expect(plan(request({ layers })).layers.map(({ name }) => name)).to.deep.equal(
        [1, 2, 10].map((index) => `model.layers.${index}.mlp.experts`),
      );
    });

    it('has the same hash on every rank, and another when another kernel is bound', () => {
      const group = expertGroup(0, 'fp8.block128');
      const base = plan(request({ layers: [group] })).hash;
      expect(
        plan(
          request({
            layers: [{ ...group, experts: [8, 9, 10, 11, 12, 13, 14, 15] }],
            device: { ...gb10, name: 'another name', memoryBytes: 1e12 },
          }),
        ).hash,
      ).to.equal(base);
      expect(plan(request({ layers: [group], preferences: [wish('prefer', 'triton')] })).hash).not.to.equal(base);
    });
  });

  it('plans linears by the same function', () => {
    const backends = [
      ...registeredLinear(linearBackend('b12x', 9, [linearRule('nvfp4', ['nvfp4.w4a4'])])),
      ...registeredLinear(
        linearBackend('triton', 1, [
          linearRule('all', ['nvfp4.w4a4', 'fp8.channel'], {
            layout: 'triton/x@1',
            sizes: { inFeatures: { multipleOf: 64 }, outFeatures: { multipleOf: 16 } },
          }),
        ]),
      ),
    ];
    const layers = [
      linear(0, 'nvfp4.w4a4'),
      linear(1, 'fp8.channel'),
      linear(2, 'fp8.channel', { inFeatures: 100 }),
      linear(3, 'fp8.channel', { hasBias: true }),
    ];
    const made = plan(request({ layers, linearBackends: backends }));
    expect(backendsOf(made)).to.deep.equal(['b12x', 'triton', '', '']);
    expect(explainUnserved(made).message)
      .to.contain('in_features were a multiple of 64: it is 100')
      .and.to.contain('does not cover a bias');
  });

  it('shows a backend, and keeps in the plan, what the KV cache rounds a linear to', () => {
    const backend = linearBackend('rows', 1, [linearRule('exact', ['bf16']), linearRule('fast', ['bf16'])]);
    const refuse: typeof backend.refuse = ({ cachedAs }, { id }) =>
      cachedAs === undefined || id === 'exact' ? undefined : { dimension: 'backend', message: `not for a cache of ${cachedAs}.` };
    const priority: typeof backend.priority = (_, { id }) => (id === 'fast' ? 2 : 1);
    const layers = [linear(0, 'bf16', { cachedAs: 'f8e4m3' }), linear(1, 'bf16')];
    const made = plan(request({ layers, linearBackends: registeredLinear({ ...backend, priority, refuse }) }));
    expect(made.layers.map(({ cachedAs, bindings }) => [cachedAs, bindings[0]?.rule])).to.deep.equal([
      ['f8e4m3', 'exact'],
      [undefined, 'fast'],
    ]);
    expect(made.layers[0]?.refused[0]?.reasons[0]?.message).to.equal('not for a cache of f8e4m3.');
  });

  it('asks once for layers that are alike', () => {
    let numQuestions = 0;
    const counting = registered(
      moeBackend('counting', 1, [expertRule('r', ['bf16'], { layout: 'counting/x@1' })], {
        priority: () => {
          numQuestions += 1;
          return 1;
        },
      }),
    );
    const layers = Array.from({ length: 1000 }, (_, index) => expertGroup(index, 'bf16', { hiddenSize: index % 2 === 0 ? 2048 : 4096 }));
    expect(plan(request({ layers, moeBackends: counting })).layers).to.have.length(1000);
    expect(numQuestions).to.equal(2);
  });
});
