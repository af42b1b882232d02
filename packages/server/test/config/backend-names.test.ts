import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Preference } from '@moe-server/core';
import { repositoryRoot } from '@moe-server/test-kit';
import { expect } from 'chai';
import { backendNames, resolveBackendNames } from '../../src/config/backend-names.js';
import { nearestWord } from '../../src/config/nearest-word.js';

const hostWith = (...names: string[]): Parameters<typeof resolveBackendNames>[1] => ({
  moeBackends: names.map((name) => ({ name }) as Parameters<typeof resolveBackendNames>[1]['moeBackends'][number]),
  linearBackends: [],
});
const wish = (backend: string, effect: Preference['effect'] = 'prefer'): Preference => ({
  effect,
  backend,
  scope: { kind: 'moe' },
  source: { type: 'environment', text: `MOE_BACKEND=${backend}` },
});

describe('resolveBackendNames', () => {
  const host = hostWith('b12x', 'cpu', 'cutlass', 'triton');

  it("reads vLLM's names as ours, saying so", () => {
    for (const [name, backend] of Object.entries(backendNames.aliases)) {
      const { preferences, notices } = resolveBackendNames([wish(name)], host);
      expect(preferences[0]?.backend, name).to.equal(backend);
      expect(preferences[0]?.source.text, name).to.equal(`MOE_BACKEND=${name}`);
      expect(notices, name).to.deep.equal([`MOE_BACKEND=${name} (environment): ${name} was read as ${backend}.`]);
    }
  });

  it('takes dashes for underscores and capitals for small letters', () => {
    expect(resolveBackendNames([wish('FlashInfer-B12x')], host).preferences[0]?.backend).to.equal('b12x');
    expect(resolveBackendNames([wish('B12X')], host).preferences[0]?.backend).to.equal('b12x');
  });

  it('leaves names alone that are installed', () => {
    const own = hostWith('flashinfer_cutlass', 'marlin', 'cutlass');
    const { preferences, notices } = resolveBackendNames([wish('flashinfer_cutlass'), wish('marlin'), wish('cutlass')], own);
    expect(preferences.map(({ backend }) => backend)).to.deep.equal(['flashinfer_cutlass', 'marlin', 'cutlass']);
    expect(notices).to.deep.equal([]);
  });

  it('keeps names of vLLM that no plugin has: the plan says what becomes of them', () => {
    const wishes = backendNames.foreign.map((name) => wish(name));
    expect(resolveBackendNames(wishes, host).preferences).to.deep.equal(wishes);
  });

  it('keeps the names of built-in plugins that are not installed', () => {
    expect(resolveBackendNames([wish('b12x')], hostWith('cpu')).preferences[0]?.backend).to.equal('b12x');
  });

  it('is what docs/coming-from-vllm.md says', () => {
    const page = readFileSync(join(repositoryRoot, 'docs/coming-from-vllm.md'), 'utf8');
    for (const [name, backend] of Object.entries(backendNames.aliases)) {
      expect(page, name).to.match(new RegExp(`^\\| .*\`${name}\`.* \\| \`${backend}\` +\\|$`, 'm'));
    }
  });

  it('has no name in both tables', () => {
    for (const name of Object.keys(backendNames.aliases)) expect(backendNames.foreign).not.to.include(name);
  });

  for (const effect of ['prefer', 'require', 'forbid'] as const) {
    it(`refuses to ${effect} what nobody knows, with the list and what may have been meant`, () => {
      expect(() => resolveBackendNames([wish('cutlas', effect)], host))
        .to.throw('MOE_BACKEND=cutlas: there is no backend named cutlas; installed are b12x, cpu, cutlass, triton. Did you mean cutlass?')
        .with.property('code', 'MOE_USAGE');
    });
  }

  it('asks nothing of auto', () => {
    expect(resolveBackendNames([wish('auto', 'auto')], host).notices).to.deep.equal([]);
  });
});

describe('nearestWord', () => {
  it('finds letters that are wrong, missing or too many', () => {
    for (const word of ['tritom', 'trton', 'trriton']) expect(nearestWord(word, ['cpu', 'triton'])).to.equal('triton');
  });

  it('finds nothing where nothing is near', () => {
    expect(nearestWord('turbo', ['cpu', 'triton'])).to.equal(undefined);
    expect(nearestWord('x', ['y'])).to.equal(undefined);
  });
});
