import { expect } from 'chai';
import { isMoeError } from '../../src/errors.js';
import { validateBackend } from '../../src/oracle/validate-backend.js';
import { expertRule, linearBackend, linearRule, moeBackend } from './declared-backends.js';

/** Puts `value` at a path such as `rules[0].sizes.hiddenSize.multipleOf` of a deep copy of a backend; `undefined` removes what is there. */
function withFault(kind: 'moe' | 'linear', path: string, value: unknown): unknown {
  const rule =
    kind === 'moe'
      ? expertRule('one', ['nvfp4.w4a4'], { activations: [{ type: 'swiglu', alpha: {}, limit: {} }], layout: 'b12x/rows@1' })
      : linearRule('one', ['bf16'], { layout: 'b12x/rows@1' });
  const backend: Record<string, unknown> = kind === 'moe' ? { ...moeBackend('b12x', 1, []) } : { ...linearBackend('b12x', 1, []) };
  backend.rules = [structuredClone(rule), { ...structuredClone(rule), id: 'two' }];
  const steps = path.split(/[.[\]]+/).filter((step) => step !== '');
  const last = steps.pop() ?? '';
  let target = backend;
  for (const step of steps) target = target[step] as Record<string, unknown>;
  if (value === undefined) Reflect.deleteProperty(target, last);
  else target[last] = value;
  return backend;
}

function faultOf(candidate: unknown, kind: 'moe' | 'linear' = 'moe'): { readonly message: string; readonly path: unknown } {
  try {
    validateBackend(candidate, kind, 'some-plugin');
  } catch (error) {
    if (isMoeError(error) && error.code === 'MOE_PLUGIN_RULE') return { message: error.message, path: error.details.path };
    throw error;
  }
  throw new Error('the backend was accepted');
}

describe('validateBackend', () => {
  it('accepts a backend of either kind', () => {
    validateBackend(withFault('moe', 'name', 'b12x'), 'moe', 'p');
    validateBackend(withFault('linear', 'name', 'b12x'), 'linear', 'p');
  });

  const faults: [path: string, value: unknown, message: string][] = [
    ['kind', 'linear', `must be 'moe'; it is "linear"`],
    ['name', 'B12X', 'a name of lower-case letters, digits, "-" and "_"'],
    ['name', 'auto', 'other than "auto"'],
    ['name', '!triton', 'a name of lower-case letters'],
    ['priority', undefined, 'a function; it is left out'],
    ['pack', 'pack', 'a function; it is "pack"'],
    ['refuse', true, 'a function, or left out'],
    ['rules', [], 'at least one rule'],
    ['rules', undefined, 'a list; it is left out'],
    ['rules[1]', null, 'an object; it is null'],
    ['rules[1].id', 'one', 'an id of its own (rules[0] has this one)'],
    ['rules[0].id', '', 'letters, digits'],
    ['rules[0].schemes', [], 'at least one quantization scheme'],
    ['rules[0].schemes[0]', 'nvfp4', 'a defined scheme (nvfp4.w4a4,'],
    ['rules[0].device', undefined, 'an object'],
    ['rules[0].device.type', 'tpu', 'one of cpu, cuda'],
    ['rules[0].device', { type: 'cpu', features: 'avx2' }, 'a list; it is "avx2"'],
    ['rules[0].device', { type: 'cpu', architectures: [1] }, 'a name; it is 1'],
    ['rules[0].routing', [{ score: 'softmax', order: 'score-first', renormalize: 1 }], 'true or false; it is 1'],
    ['rules[0].device.sm', [], 'at least one compute capability'],
    ['storage', true, 'an object; it is true'],
    ['storage', { save: () => undefined }, 'a function; it is left out'],
    ['rules[0].device.sm', { min: '90' }, 'an integer of at least 10; it is "90"'],
    ['rules[0].device.sm', [9.0], 'a compute capability as major * 10 + minor'],
    ['rules[0].tokens', undefined, 'an object'],
    ['rules[0].tokens.min', 0, 'an integer of at least 1'],
    ['rules[0].tokens.maximum', 5, 'no field of that name (known: min, max)'],
    ['rules[0].tokens', { min: 9, max: 8 }, 'min not above max'],
    ['rules[0].sizes.hiddenSize', undefined, 'an object'],
    ['rules[0].sizes.hiddenSize.multipleOf', 0, 'a positive integer; it is 0'],
    ['rules[0].sizes.moeIntermediateSize.multipleOf', 1.5, 'a positive integer'],
    ['rules[0].sizes.inFeatures', { multipleOf: 1 }, 'no field of that name (known: hiddenSize, moeIntermediateSize)'],
    ['rules[0].numExperts.max', NaN, 'an integer of at least 1'],
    ['rules[0].topK', 8, 'an object; it is 8'],
    ['rules[0].activations', [], 'at least one activation'],
    ['rules[0].activations[0].type', 'gelu', 'one of silu, swiglu'],
    ['rules[0].activations[0].alpha', undefined, 'an object'],
    ['rules[0].activations[0].limit.max', 'seven', 'a number'],
    ['rules[0].arithmetic', undefined, 'an object'],
    ['rules[0].arithmetic.accumulator', 'bf16', 'one of f64, f32, f16'],
    ['rules[0].arithmetic.input', { type: 'own' }, 'an object; it is left out'],
    ['rules[0].arithmetic.input.dtype', 'f8', 'one of f32, bf16, f16'],
    ['rules[0].layout', 'rows', '<owner>/<name>@<version>'],
    ['rules[0].layout', 'b12x/rows@0', '<owner>/<name>@<version>'],
    ['rules[0].parallel', 'tp', 'a list'],
    ['rules[0].parallel', ['pp'], 'one of tp, ep'],
    ['rules[0].bias', 'yes', 'true, false, or left out'],
    ['rules[0].onlyWhenNamed', ' ', 'a sentence that says why'],
    ['rules[0].routing', [], 'at least one routing method'],
    ['rules[0].routing', [{ score: 'tanh' }], 'one of softmax, sigmoid'],
    ['rules[0].batchInvariants', true, 'no field of that name (known: id, schemes,'],
    ['rules[0].gatherScatter', () => true, 'no field of that name'],
  ];
  for (const [path, value, message] of faults) {
    it(`names ${path} when it is ${typeof value === 'function' ? 'a function' : value === undefined ? 'left out' : JSON.stringify(value)}`, () => {
      const fault = faultOf(withFault('moe', path, value));
      expect(fault.message).to.contain('Plugin "some-plugin", moe backend ').and.to.contain(message);
      // The fault may lie below what was changed.
      expect(String(fault.path).startsWith(path), String(fault.path)).to.equal(true);
    });
  }

  it('names the fields that a linear rule does not have', () => {
    expect(faultOf(withFault('linear', 'rules[0].topK', {}), 'linear').path).to.equal('rules[0].topK');
    expect(faultOf(withFault('linear', 'rules[0].sizes.hiddenSize', { multipleOf: 1 }), 'linear').path).to.equal(
      'rules[0].sizes.hiddenSize',
    );
  });

  for (const candidate of [undefined, null, 7, 'b12x', []]) {
    it(`refuses ${candidate === undefined ? 'undefined' : JSON.stringify(candidate)} for a backend`, () => {
      expect(faultOf(candidate).message).to.contain('the backend must be an object');
    });
  }
});
