import { expect } from 'chai';
import { explainUnserved, isServable } from '../../src/oracle/explain.js';
import { plan } from '../../src/oracle/plan.js';
import { expertGroup, expertRule, moeBackend, registered } from './declared-backends.js';
import { backendsOf, planOne, request, wish } from './plan-requests.js';

describe('plan', () => {
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
});
