import { expect } from 'chai';
import { singleRank, type ExpertGroupSpec } from '../../src/layer-spec.js';
import type { ErasedMoeBackend } from '../../src/oracle/erased-backend.js';
import type { PlanRequest } from '../../src/oracle/plan-types.js';
import { expertGroup, expertRule, moeBackend, registered } from './declared-backends.js';
import { planOne } from './plan-requests.js';

describe('plan', () => {
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
});
