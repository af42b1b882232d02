import { expect } from 'chai';
import { asScheme, expertGroup, expertRule, moeBackend, registered } from './declared-backends.js';
import { planOne } from './plan-requests.js';

describe('plan', () => {
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
});
