import { expect } from 'chai';
import { explainUnserved, isServable, summarizePlan } from '../../src/oracle/explain.js';
import { plan } from '../../src/oracle/plan.js';
import type { Plan } from '../../src/oracle/plan-types.js';
import {
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
import { backendsOf, mixed, only, planOne, request, wish } from './plan-requests.js';

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
