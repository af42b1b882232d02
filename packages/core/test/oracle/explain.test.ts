import { expect } from 'chai';
import { explainUnserved, isServable, summarizePlan } from '../../src/oracle/explain.js';
import { plan } from '../../src/oracle/plan.js';
import type { PlanRequest } from '../../src/oracle/plan-types.js';
import { expertGroup, expertRule, gb10, linear, moeBackend, registered } from './declared-backends.js';

function planOf(changes: Partial<PlanRequest>) {
  return plan({ layers: [], device: gb10, moeBackends: [], linearBackends: [], maxNumTokens: 128, ...changes });
}

describe('explainUnserved', () => {
  it('says when there is no backend of the kind at all', () => {
    const { message } = explainUnserved(planOf({ layers: [linear(0, 'bf16'), expertGroup(0, 'bf16')] }));
    expect(message).to.contain('No experts backend is installed at all.').and.to.contain('No linear backend is installed at all.');
    expect(message.indexOf('experts bf16')).to.be.lessThan(message.indexOf('linear bf16'));
  });

  it('names a few layers one by one and many by their ends', () => {
    const layers = [...[0, 1].map((index) => expertGroup(index, 'fp8.channel')), ...[2, 3, 10].map((index) => expertGroup(index, 'bf16'))];
    const { message } = explainUnserved(
      planOf({ layers, moeBackends: registered(moeBackend('b12x', 1, [expertRule('r', ['nvfp4.w4a4'])])) }),
    );
    expect(message).to.contain('No backend serves 5 of 5 layers (2 groups)');
    expect(message).to.contain('experts fp8.channel (model.layers.0.mlp.experts, model.layers.1.mlp.experts)');
    expect(message).to.contain('experts bf16 (model.layers.2.mlp.experts … model.layers.10.mlp.experts, 3 layers)');
    expect(message).to.contain('    b12x: it runs nvfp4.w4a4; these weights are bf16.');
  });

  it('names the schemes of all rules of a backend that runs none of the layer', () => {
    const fp4 = registered(
      moeBackend('fp4', 1, [expertRule('a', ['nvfp4.w4a4', 'nvfp4.w4a16']), expertRule('b', ['nvfp4.w4a16', 'mxfp4.w4a16'])]),
    );
    const { message } = explainUnserved(planOf({ layers: [expertGroup(0, 'bf16')], moeBackends: fp4 }));
    expect(message).to.contain('fp4 (nearest of its 2 rules: a): it runs nvfp4.w4a4, nvfp4.w4a16 and mxfp4.w4a16; these weights are bf16.');
    const split = { w13: 'nvfp4.w4a4', w2: 'mxfp4.w4a16' } as const;
    const mixed = explainUnserved(planOf({ layers: [expertGroup(0, 'bf16', { schemes: split })], moeBackends: fp4 })).message;
    expect(mixed).to.contain('it runs nvfp4.w4a4 and nvfp4.w4a16; these weights are mxfp4.w4a16.');
  });

  const lifts: [what: string, changes: Partial<PlanRequest>, rule: Parameters<typeof expertRule<'nvfp4.w4a4'>>[2], remedy: string][] = [
    ['numerics', { numerics: { default: 'same' } }, {}, 'by only with --numerics auto.'],
    ['rules for those who name them', {}, { onlyWhenNamed: 'It is slow.' }, 'by only when only is named.'],
    [
      'quarantine',
      { evidence: { quarantined: [{ backend: 'only', reason: 'It crashed.' }] } },
      {},
      'by only once it is out of quarantine.',
    ],
    [
      'hooks',
      { narrow: (given) => ({ kept: [], removedBy: new Map(given.map((one) => [one, 'tap'])) }) },
      {},
      'by only if it were not for a plugin: tap removed it from the candidates.',
    ],
  ];
  for (const [what, changes, rule, remedy] of lifts) {
    it(`says what would serve were it not for ${what}`, () => {
      const made = planOf({
        layers: [expertGroup(0, 'nvfp4.w4a4')],
        moeBackends: registered(moeBackend('only', 1, [expertRule('r', ['nvfp4.w4a4'], rule)])),
        ...changes,
      });
      expect(explainUnserved(made).message).to.contain(`It would be served ${remedy}`);
    });
  }

  it('says what would serve once its kernel is built', () => {
    const backend = moeBackend('only', 1, [expertRule('r', ['bf16'])], { missing: () => 'No addon for this platform.' });
    const { message } = explainUnserved(planOf({ layers: [expertGroup(0, 'bf16')], moeBackends: registered(backend) }));
    expect(message)
      .to.contain('its kernel is not built here: No addon for this platform.')
      .and.to.contain('It would be served by only once its kernel is built.');
  });

  it('names the workspace where that is the larger part', () => {
    const backend = moeBackend('only', 1, [expertRule('r', ['bf16'])], {
      footprint: () => ({ residentBytes: 10, preparePeakBytes: 1, workspaceBytes: (numTokens) => numTokens }),
    });
    const made = planOf({ layers: [expertGroup(0, 'bf16')], moeBackends: registered(backend), memoryBytes: 100 });
    expect(isServable(made)).to.equal(false);
    expect(explainUnserved(made).message).to.contain('10 B of packed weights and 128 B of workspace make 138 B');
  });
});

describe('summarizePlan', () => {
  it('shows the switch between kernels, sums bytes, and takes the worst numerics', () => {
    const rules = [
      expertRule('decode', ['nvfp4.w4a4'], { tokens: { max: 64 } }),
      expertRule('prefill', ['nvfp4.w4a4'], {
        tokens: { min: 65 },
        arithmetic: { input: { type: 'as-scheme' }, weights: 'exact', accumulator: 'f32', intermediate: 'bf16', output: 'bf16' },
      }),
    ];
    const backend = moeBackend('a', 1, rules, { footprint: () => ({ residentBytes: 10, preparePeakBytes: 0, workspaceBytes: () => 0 }) });
    const [row] = summarizePlan(
      planOf({ layers: [expertGroup(0, 'nvfp4.w4a4'), expertGroup(1, 'nvfp4.w4a4')], moeBackends: registered(backend) }),
    );
    expect(row).to.include({
      backend: 'a (1–64) + a (65–128)',
      rule: 'decode + prefill',
      numerics: 'wider',
      numLayers: 2,
      residentBytes: 20,
      firstLayer: 'model.layers.0.mlp.experts',
      lastLayer: 'model.layers.1.mlp.experts',
    });
  });

  it('gives unserved layers a row with the nearest miss', () => {
    const [row] = summarizePlan(
      planOf({ layers: [expertGroup(0, 'bf16')], moeBackends: registered(moeBackend('b12x', 1, [expertRule('r', ['nvfp4.w4a4'])])) }),
    );
    expect(row).to.include({ backend: undefined, numerics: undefined, because: 'it runs nvfp4.w4a4; these weights are bf16.' });
    const [bare] = summarizePlan(planOf({ layers: [expertGroup(0, 'bf16')] }));
    expect(bare?.because).to.equal('no backend is installed');
  });

  it('marks kernels that are only declared', () => {
    const backend = moeBackend('a', 1, [expertRule('r', ['bf16'])], { missing: () => 'later' });
    expect(
      summarizePlan(planOf({ layers: [expertGroup(0, 'bf16')], moeBackends: registered(backend), assumeBuilt: true }))[0]?.built,
    ).to.equal(false);
  });
});
