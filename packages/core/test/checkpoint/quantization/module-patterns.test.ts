import { expect } from 'chai';
import fc from 'fast-check';
import { canonicalModule, matchesGlob, ModulePatterns } from '../../../src/checkpoint/quantization/module-patterns.js';

describe('ModulePatterns', () => {
  const cases: readonly [string, string, boolean][] = [
    ['lm_head', 'lm_head', true],
    ['lm_head', 'lm_head2', false],
    ['model.layers.0.self_attn*', 'model.layers.0.self_attn.q_proj', true],
    ['model.layers.0.self_attn*', 'model.layers.10.self_attn.q_proj', false],
    ['model.layers.*.self_attn', 'model.layers.3.self_attn.q_proj', true],
    ['*.mlp.shared_expert.*', 'model.layers.3.mlp.shared_expert.up_proj', true],
    ['*.mlp.shared_expert.*', 'model.layers.3.mlp.shared_expert_gate', false],
    ['mtp*', 'mtp.layers.0.self_attn.q_proj', true],
    ['model.layers.1.mlp.gate', 'model.layers.1.mlp.gate', true],
    ['model.layers.1.mlp.gate', 'model.layers.1.mlp.gate_proj', false],
    ['model.layers.1.mlp', 'model.layers.1.mlp.experts.3.up_proj', true],
    ['language_model.model.layers.1*', 'model.language_model.layers.1.mlp.gate', true],
    ['model.layers.1.self_attn', 'model.language_model.layers.1.self_attn.q_proj', true],
    ['model.layers.?.mlp.gate', 'model.layers.7.mlp.gate', true],
    ['model.layers.?.mlp.gate', 'model.layers.17.mlp.gate', false],
  ];
  for (const [pattern, module, expected] of cases) {
    it(`${expected ? 'covers' : 'leaves out'} ${module} by ${pattern}`, () => {
      expect(new ModulePatterns([pattern]).matches(module)).to.equal(expected);
    });
  }

  it('knows entries that are a part of the name', () => {
    expect(new ModulePatterns(['self_attn.o_proj']).isPartOf('model.layers.1.self_attn.o_proj')).to.equal(true);
    expect(new ModulePatterns(['mlp.gate']).isPartOf('model.layers.1.self_attn.o_proj')).to.equal(false);
  });

  it('strips what multimodal wrappers put before a name', () => {
    expect(canonicalModule('model.language_model.layers.0')).to.equal('model.layers.0');
    expect(canonicalModule('language_model.model.layers.0')).to.equal('model.layers.0');
    expect(canonicalModule('language_model.lm_head')).to.equal('lm_head');
    expect(canonicalModule('model.visual.blocks.0')).to.equal('model.visual.blocks.0');
  });
});

describe('matchesGlob', () => {
  it('agrees with the regular expression', () => {
    const letters = fc.stringMatching(/^[ab.]{0,8}$/);
    fc.assert(
      fc.property(fc.stringMatching(/^[ab.*?]{0,8}$/), letters, (pattern, text) => {
        const source = pattern.replaceAll('.', '\\.').replaceAll('*', '.*').replaceAll('?', '.');
        expect(matchesGlob(pattern, text)).to.equal(new RegExp(`^${source}$`).test(text));
      }),
      { seed: 20, numRuns: 2000 },
    );
  });

  it('does not take exponential time', () => {
    expect(matchesGlob(`${'a*'.repeat(200)}b`, 'a'.repeat(2000))).to.equal(false);
  });
});
