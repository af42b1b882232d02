import { expect } from 'chai';
import type { LayerSpec } from '../../src/layer-spec.js';
import { byPrecedence, chainFor, isInScope, type Preference, type PreferenceScope } from '../../src/oracle/preferences.js';
import { expertGroup, linear } from './declared-backends.js';

type Source = Preference['source']['type'];

function prefer(backend: string, scope: PreferenceScope, source: Source = 'flag', effect: Preference['effect'] = 'prefer'): Preference {
  return { effect, backend, scope, source: { type: source, text: backend } };
}

function chain(spec: LayerSpec, ...preferences: Preference[]): string[] {
  const schemes = spec.kind === 'moe' ? [spec.schemes.w13, spec.schemes.w2] : [spec.scheme];
  return chainFor(spec, schemes, byPrecedence(preferences)).wishes.map(({ backend }) => backend);
}

function matches(spec: LayerSpec, scope: PreferenceScope): boolean {
  const [ranked] = byPrecedence([prefer('x', scope)]);
  if (ranked === undefined) throw new Error('one preference in, none out');
  return isInScope(spec, spec.kind === 'moe' ? [spec.schemes.w13, spec.schemes.w2] : [spec.scheme], ranked);
}

describe('preferences', () => {
  const fp8 = expertGroup(41, 'fp8.block128');

  const byNarrowness: [string, PreferenceScope][] = [
    ['layer', { layers: 'model.layers.4?.*' }],
    ['scheme', { scheme: 'fp8.block128' }],
    ['family', { family: 'fp8' }],
    ['role', { role: 'target' }],
    ['kind', { kind: 'moe' }],
    ['all', {}],
  ];
  for (const [index, [narrow, narrowScope]] of byNarrowness.entries()) {
    for (const [wide, wideScope] of byNarrowness.slice(index + 1)) {
      it(`puts ${narrow} before ${wide}, whatever the sources`, () => {
        expect(chain(fp8, prefer(wide, wideScope, 'flag'), prefer(narrow, narrowScope, 'file'))).to.deep.equal([narrow, wide]);
      });
    }
  }

  it('puts a flag before the environment before a file where scopes are equal', () => {
    const scope = { family: 'fp8' };
    expect(
      chain(fp8, prefer('file', scope, 'file'), prefer('flag', scope, 'flag'), prefer('environment', scope, 'environment')),
    ).to.deep.equal(['flag', 'environment', 'file']);
  });

  it('keeps the given order where precedence is equal', () => {
    expect(chain(fp8, prefer('b', {}), prefer('a', {}))).to.deep.equal(['b', 'a']);
  });

  it('puts a scope of two conditions before one of the first alone', () => {
    expect(chain(fp8, prefer('family', { family: 'fp8' }), prefer('both', { family: 'fp8', kind: 'moe' }))).to.deep.equal([
      'both',
      'family',
    ]);
  });

  it('ends the list at a requirement', () => {
    expect(chain(fp8, prefer('a', {}), prefer('b', { kind: 'moe' }, 'flag', 'require'), prefer('c', { family: 'fp8' }))).to.deep.equal([
      'c',
      'b',
    ]);
  });

  it('keeps every forbid, also behind a requirement', () => {
    const { forbids } = chainFor(
      fp8,
      ['fp8.block128'],
      byPrecedence([prefer('a', {}, 'file', 'forbid'), prefer('b', { scheme: 'fp8.block128' }, 'flag', 'require')]),
    );
    expect(forbids.map(({ backend }) => backend)).to.deep.equal(['a']);
  });

  const scopes: [what: string, spec: LayerSpec, scope: PreferenceScope, expected: boolean][] = [
    ['any characters for *', fp8, { layers: 'model.*.experts' }, true],
    ['one character for ?', fp8, { layers: 'model.layers.4?.mlp.experts' }, true],
    ['not two for ?', fp8, { layers: 'model.layers.?.mlp.experts' }, false],
    ['the whole name only', fp8, { layers: 'layers.41' }, false],
    ['dots as dots', fp8, { layers: 'modelXlayers*' }, false],
    [
      'a group by its name before #',
      expertGroup(3, 'bf16', { name: 'model.layers.3.mlp.experts#bf16' }),
      { layers: 'model.layers.3.mlp.experts' },
      true,
    ],
    [
      'a fusion by one of its modules',
      linear(0, 'bf16', {
        name: 'model.layers.0.self_attn.qkv_proj',
        modules: [{ name: 'model.layers.0.self_attn.q_proj', outFeatures: 64 }],
      }),
      { layers: '*.q_proj' },
      true,
    ],
    ['another kind', fp8, { kind: 'linear' }, false],
    ['another role', fp8, { role: 'draft' }, false],
    ['another family', fp8, { family: 'nvfp4' }, false],
    ['a key that only shares the family', fp8, { scheme: 'fp8.channel' }, false],
    [
      'a group that has the scheme in one projection',
      expertGroup(0, 'bf16', { schemes: { w13: 'bf16', w2: 'fp8.channel' } }),
      { family: 'fp8' },
      true,
    ],
  ];
  for (const [what, spec, scope, expected] of scopes) {
    it(`${expected ? 'matches' : 'does not match'} ${what}`, () => {
      expect(matches(spec, scope)).to.equal(expected);
    });
  }
});
