import { expect } from 'chai';
import fc from 'fast-check';
import { layerClassOf, measuredCosts, rankRules, type MeasuredTime, type RankedRule } from '../../src/oracle/evidence.js';
import { plan } from '../../src/oracle/plan.js';
import type { Evidence, Plan, PlanRequest } from '../../src/oracle/plan-types.js';
import { expertGroup, expertRule, gb10, linear, moeBackend, registered } from './declared-backends.js';

const at = '2026-01-02T03:04:05.000Z';
const sizes = [1, 16, 256];

function timesOf(backend: string, rule: string, perToken: number, spread = 0): MeasuredTime[] {
  return sizes.map((numTokens) => ({ backend, rule, numTokens, medianUs: perToken * numTokens, spreadUs: spread * numTokens }));
}

const group = expertGroup(3, 'bf16');
const layers = [group];
const alpha = moeBackend('alpha', 10, [expertRule('one', ['bf16'])]);
const beta = moeBackend('beta', 20, [expertRule('one', ['bf16']), expertRule('prefill', ['bf16'], { tokens: { min: 100 } })]);
const small = moeBackend('small', 5, [expertRule('decode', ['bf16'], { tokens: { max: 64 } })]);

function evidenceFor(...times: readonly MeasuredTime[]): Evidence {
  return { measured: { environment: 'here', classes: [{ layerClass: layerClassOf(group), measuredAt: at, times }] } };
}

function planOf(changes: Partial<PlanRequest>): Plan {
  return plan({ layers, device: gb10, moeBackends: registered(alpha, beta), linearBackends: [], maxNumTokens: 512, ...changes });
}

function leadOf({ layers: [layer] }: Plan): { readonly name: string; readonly because: string } {
  const binding = layer?.bindings[0];
  return { name: `${binding?.backend ?? ''}/${binding?.rule ?? ''}`, because: binding?.because ?? '' };
}

describe('layerClassOf', () => {
  it('is the same for layers that differ in name, place, role and which experts they hold', () => {
    const other = { ...expertGroup(9, 'bf16'), role: 'draft' as const, experts: group.experts.map((id) => id + 8) };
    expect(layerClassOf(other)).to.equal(layerClassOf(group));
    expect(layerClassOf(expertGroup(3, 'bf16', { topK: 4 }))).not.to.equal(layerClassOf(group));
  });

  it('sets linears outside the decoder layers apart, which see only logit rows', () => {
    expect(layerClassOf(linear(0, 'bf16', { layerIndex: undefined }))).not.to.equal(layerClassOf(linear(0, 'bf16')));
  });
});

describe('measuredCosts', () => {
  const rule = { backend: 'a', rule: 'r', min: 1, max: 512 };
  const measured = (times: readonly MeasuredTime[]) => ({ layerClass: '', measuredAt: at, times });

  it('adds three prompt tokens to every generated one', () => {
    const times = [1, 4, 16, 64, 256].map((numTokens) => ({
      backend: 'a',
      rule: 'r',
      numTokens,
      medianUs: numTokens > 16 ? numTokens : 8,
    }));
    // Decode: (8 + 2 + 0.5) / 3 a token; prefill: 1 a token.
    expect(measuredCosts([rule], group, measured(times), 512).get('a/r')?.costUs).to.be.closeTo(3.5 + 3, 1e-9);
  });

  it('counts every size as decode where a layer sees only logit rows', () => {
    const head = linear(0, 'bf16', { layerIndex: undefined });
    expect(measuredCosts([rule], head, measured(timesOf('a', 'r', 2)), 512).get('a/r')?.costUs).to.be.closeTo(2, 1e-9);
  });

  it('fills sizes that a rule does not take with the fastest other', () => {
    const decode = { backend: 'b', rule: 'd', min: 1, max: 64 };
    const times = [...timesOf('a', 'r', 4), ...timesOf('b', 'd', 1).slice(0, 2)];
    expect(measuredCosts([rule, decode], group, measured(times), 512).get('b/d')?.costUs).to.be.closeTo(1 + 3 * 4, 1e-9);
  });

  it('leaves out a rule that lacks a size it takes, and sizes beyond the largest call', () => {
    const other = { ...rule, backend: 'b' };
    const times = [...timesOf('a', 'r', 1), ...timesOf('b', 'r', 1).slice(0, 2)];
    expect([...measuredCosts([rule, other], group, measured(times), 512).keys()]).to.deep.equal(['a/r']);
    expect([...measuredCosts([rule, other], group, measured(times), 64).keys()]).to.deep.equal(['a/r', 'b/r']);
  });
});

describe('rankRules', () => {
  const arbitraryRules = fc.uniqueArray(
    fc.record({
      backend: fc.constantFrom('a', 'b', 'c', 'd'),
      rule: fc.constantFrom('x', 'y', 'z'),
      priority: fc.integer({ min: 0, max: 3 }),
      wish: fc.constantFrom(0, 1, Infinity),
      costUs: fc.option(fc.double({ min: 1, max: 2, noNaN: true }), { nil: undefined }),
    }),
    { selector: ({ backend, rule }) => `${backend}/${rule}`, minLength: 1 },
  );
  const rulesOf = (drawn: typeof arbitraryRules extends fc.Arbitrary<infer T> ? T : never): RankedRule[] =>
    drawn.map(({ costUs, ...rest }) => (costUs === undefined ? rest : { ...rest, measured: { costUs, spreadUs: costUs % 0.1, at } }));

  it('depends on neither the order of the rules nor the time of day', () => {
    fc.assert(
      fc.property(arbitraryRules, fc.integer(), (drawn, seed) => {
        const rules = rulesOf(drawn);
        const shuffled = [...rules].sort((a, b) => ((seed * a.backend.charCodeAt(0)) % 7) - ((seed * b.backend.charCodeAt(0)) % 7));
        expect(rankRules(shuffled)).to.deep.equal(rankRules(rules));
        expect(rankRules(rankRules(rules))).to.deep.equal(rankRules(rules));
      }),
      { seed: 11 },
    );
  });

  it('puts wishes before measurements, and measurements before priorities', () => {
    fc.assert(
      fc.property(arbitraryRules, (drawn) => {
        const ranked = rankRules(rulesOf(drawn));
        ranked.forEach((later, index) => {
          for (const earlier of ranked.slice(0, index)) {
            expect(earlier.wish).to.be.at.most(later.wish);
            if (earlier.wish !== later.wish || later.measured === undefined) continue;
            expect(earlier.measured).not.to.equal(undefined);
            // Lower priority goes first only where it is faster.
            if (earlier.priority < later.priority) expect(earlier.measured?.costUs).to.be.at.most(later.measured.costUs);
          }
        });
      }),
      { seed: 12 },
    );
  });
});

describe('plan', () => {
  it('takes what was measured as faster, says by how much and when, and names the environment', () => {
    const made = planOf({ evidence: evidenceFor(...timesOf('alpha', 'one', 10), ...timesOf('beta', 'one', 15)) });
    expect(leadOf(made)).to.deep.equal({ name: 'alpha/one', because: 'measured 1.5 times as fast as beta/one (2026-01-02)' });
    expect(made.evidence).to.deep.equal({ environment: 'here', numClasses: 1 });
    expect(made.layers[0]?.eligible.find(({ rule }) => rule === 'one')?.measured).to.deep.equal({ costUs: 60, spreadUs: 0, at });
  });

  it('goes by priority where times are equal within their noise, or nothing was measured', () => {
    const equal = leadOf(planOf({ evidence: evidenceFor(...timesOf('alpha', 'one', 10), ...timesOf('beta', 'one', 10.1)) }));
    expect(equal.name).to.equal('beta/one');
    expect(equal.because).to.equal('measured as fast as alpha/one (2026-01-02), and priority 20 puts it first');
    const unsteady = leadOf(planOf({ evidence: evidenceFor(...timesOf('alpha', 'one', 10, 3), ...timesOf('beta', 'one', 12)) }));
    expect(unsteady.name).to.equal('beta/one');
    const without = planOf({});
    expect(leadOf(without).name).to.equal('beta/one');
    expect(leadOf(without).because).to.match(/^priority 20, /);
    expect(without.evidence).to.equal(undefined);
  });

  it('follows a preference whatever was measured', () => {
    const evidence = evidenceFor(...timesOf('alpha', 'one', 10), ...timesOf('beta', 'one', 15));
    const wish = { effect: 'prefer', backend: 'beta', scope: {}, source: { type: 'flag', text: '--moe-backend beta' } } as const;
    expect(leadOf(planOf({ evidence, preferences: [wish] })).name).to.equal('beta/one');
  });

  it('never binds a rule outside its tokens, however fast it is', () => {
    const evidence = evidenceFor(
      ...timesOf('small', 'decode', 1).slice(0, 2),
      ...timesOf('alpha', 'one', 10),
      ...timesOf('beta', 'one', 15),
    );
    const made = planOf({ evidence, moeBackends: registered(alpha, beta, small) });
    expect(made.unserved).to.deep.equal([]);
    for (const { backend, tokens } of made.layers[0]?.bindings ?? []) if (backend === 'small') expect(tokens.max).to.be.at.most(64);
  });

  it('does not let measurements widen: a rule that does not cover the layer stays refused', () => {
    const fp8Only = moeBackend('fp8only', 1, [expertRule('one', ['fp8.channel'])]);
    const evidence = evidenceFor(...timesOf('fp8only', 'one', 0.001), ...timesOf('alpha', 'one', 10));
    const made = planOf({ evidence, moeBackends: [...registered(alpha), ...registered(fp8Only)] });
    expect(leadOf(made).name).to.equal('alpha/one');
    expect(made.layers[0]?.refused.map(({ backend }) => backend)).to.deep.equal(['fp8only']);
  });

  it('refuses what is quarantined for this class of layers only', () => {
    const reason = 'The process died (SIGSEGV).';
    const quarantined = [{ backend: 'beta', kind: 'moe', layerClass: layerClassOf(group), reason }] as const;
    const made = planOf({ layers: [group, expertGroup(4, 'bf16', { topK: 4 })], evidence: { quarantined } });
    expect(made.layers.map(({ bindings }) => bindings[0]?.backend)).to.deep.equal(['alpha', 'beta']);
    expect(made.layers[0]?.refused[0]?.reasons[0]?.message).to.contain('SIGSEGV');
  });

  it('binds the same kernels under the same hash, measured or not', () => {
    const measured = planOf({ evidence: evidenceFor(...timesOf('alpha', 'one', 20), ...timesOf('beta', 'one', 15)) });
    expect(measured.hash).to.equal(planOf({}).hash);
  });
});
