import { expect } from 'chai';
import { ConfigReader } from '../../src/checkpoint/config-reader.js';

describe('ConfigReader', () => {
  it('prefers fields of text_config and falls back to the top', () => {
    const config = ConfigReader.of({ hidden_size: 1, vocab_size: 7, text_config: { hidden_size: 2, vocab_size: null } });
    expect(config.integer('hidden_size', { max: 10 })).to.equal(2);
    expect(config.integer('vocab_size', { max: 10 })).to.equal(7);
    expect(() => config.integer('hidden_size', { max: 1 })).to.throw('text_config.hidden_size');
  });

  it('reads rope parameters of old and new files', () => {
    const old = ConfigReader.of({ rope_theta: 5, rope_scaling: { type: 'yarn', factor: 4 } });
    expect([old.ropeTheta(), old.ropeParameters()?.string('type'), old.ropeParameters()?.number('factor')]).to.deep.equal([5, 'yarn', 4]);
    const fresh = ConfigReader.of({
      text_config: { rope_parameters: { rope_type: 'default', rope_theta: 1e7, partial_rotary_factor: 0.25 } },
    });
    expect([fresh.ropeTheta(), fresh.ropeParameters()?.number('partial_rotary_factor')]).to.deep.equal([1e7, 0.25]);
    expect(ConfigReader.of({ rope_scaling: null }).ropeParameters()).to.equal(undefined);
    expect(ConfigReader.of({}).ropeTheta(10_000)).to.equal(10_000);
  });

  it('reads the dtype under either name', () => {
    expect(ConfigReader.of({ torch_dtype: 'bfloat16' }).dtype()).to.equal('bfloat16');
    expect(ConfigReader.of({ dtype: 'float16', torch_dtype: 'bfloat16' }).dtype()).to.equal('float16');
    expect(ConfigReader.of({}).dtype()).to.equal(undefined);
  });

  it('names file, field, what was expected and what came', () => {
    const config = ConfigReader.of({ a: { b: [] }, s: 3, l: [1, 'x'], h: 1e999 }, 'generation_config.json');
    expect(() => config.section('a')?.number('b')).to.throw('generation_config.json: a.b: expected a finite number, got []');
    expect(() => config.string('s')).to.throw('s: expected a string, got 3');
    expect(() => config.string('t')).to.throw('t: expected a string, it is missing');
    expect(() => config.optionalStrings('l')).to.throw('a list of strings');
    expect(() => config.integers('l')).to.throw('non-negative integers');
    expect(() => config.number('h')).to.throw('finite');
    expect(() => config.section('s')).to.throw('an object');
  });

  it('does not take what an object inherits for a field', () => {
    expect(ConfigReader.of({}).has('constructor')).to.equal(false);
    expect(ConfigReader.of({}).raw('toString')).to.equal(undefined);
  });
});
