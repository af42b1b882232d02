import { expect } from 'chai';
import { byPrecedence, chainFor } from '../../src/oracle/preferences.js';
import type { Preference, PreferenceScope, PreferenceSource } from '../../src/oracle/preferences.js';
import { expertGroup } from './declared-backends.js';

const said = (
  effect: Preference['effect'],
  backend: string,
  scope: PreferenceScope = {},
  type: PreferenceSource['type'] = 'flag',
): Preference => ({ effect, backend, scope, source: { type, text: backend } });

/** The wishes about an FP8 layer of the target, in the order in which they are asked. */
function wishes(...preferences: readonly Preference[]): string[] {
  return chainFor(expertGroup(3, 'fp8.block128'), ['fp8.block128'], byPrecedence(preferences)).wishes.map(({ backend }) => backend);
}

describe('chainFor', () => {
  it('puts the narrowest scope first, whatever it was said by', () => {
    const scopes: readonly PreferenceScope[] = [
      {},
      { kind: 'moe' },
      { role: 'target' },
      { family: 'fp8' },
      { scheme: 'fp8.block128' },
      { layers: 'model.layers.3.*' },
    ];
    const preferences = scopes.map((scope, index) => said('prefer', String(index), scope, index === 0 ? 'flag' : 'file'));
    expect(wishes(...preferences)).to.deep.equal(['5', '4', '3', '2', '1', '0']);
    expect(wishes(...[...preferences].reverse())).to.deep.equal(['5', '4', '3', '2', '1', '0']);
  });

  it('puts flags before the environment and that before a file, where scopes are equal', () => {
    expect(wishes(said('prefer', 'c', {}, 'file'), said('prefer', 'a'), said('prefer', 'b', {}, 'environment'))).to.deep.equal([
      'a',
      'b',
      'c',
    ]);
  });

  it('ends with a requirement', () => {
    expect(wishes(said('prefer', 'all'), said('require', 'fp8', { family: 'fp8' }))).to.deep.equal(['fp8']);
  });

  it('ends with auto, which is no wish itself', () => {
    expect(wishes(said('require', 'all'), said('auto', 'auto', { family: 'fp8' }))).to.deep.equal([]);
    expect(wishes(said('prefer', 'file', {}, 'file'), said('auto', 'auto'), said('prefer', 'narrow', { role: 'target' }))).to.deep.equal([
      'narrow',
    ]);
    expect(wishes(said('require', 'all'), said('auto', 'auto', { family: 'nvfp4' }))).to.deep.equal(['all']);
  });

  it('keeps what is forbidden, whatever wins', () => {
    const { forbids } = chainFor(
      expertGroup(3, 'fp8.block128'),
      ['fp8.block128'],
      byPrecedence([said('forbid', 'triton', {}, 'file'), said('auto', 'auto', { layers: '*' }), said('require', 'triton')]),
    );
    expect(forbids.map(({ backend }) => backend)).to.deep.equal(['triton']);
  });
});
