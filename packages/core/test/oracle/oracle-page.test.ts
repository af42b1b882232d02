import { expect } from 'chai';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { RefusalDimension } from '../../src/backend.js';

/** Every dimension once: the compiler sees that none is missing. */
const dimensions: Readonly<Record<RefusalDimension, true>> = {
  scheme: true,
  device: true,
  activation: true,
  hiddenSize: true,
  moeIntermediateSize: true,
  inFeatures: true,
  outFeatures: true,
  numExperts: true,
  topK: true,
  tokens: true,
  parallel: true,
  bias: true,
  batchInvariant: true,
  graphCapture: true,
  routing: true,
  mixedProjections: true,
  layout: true,
  numerics: true,
  bytes: true,
  preference: true,
  onlyWhenNamed: true,
  notBuilt: true,
  quarantined: true,
  hook: true,
  backend: true,
};

/** docs/oracle.md of the clone that this runs in. */
function readPage(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'docs', 'oracle.md'))) {
    const parent = dirname(folder);
    if (parent === folder) throw new Error('docs/oracle.md is not above this test');
    folder = parent;
  }
  return readFileSync(join(folder, 'docs', 'oracle.md'), 'utf8');
}

describe('docs/oracle.md', () => {
  it('says of every dimension of a refusal what helps, and of no other', () => {
    const page = readPage();
    const table = page.slice(page.indexOf('| dimension | sentence begins'), page.indexOf('*A is not known'));
    const named = [...table.matchAll(/^\| ([^|]+) \|/gm)].flatMap(([, cell]) =>
      [...(cell ?? '').matchAll(/`(\w+)`/g)].map(([, name]) => name),
    );
    expect(named.sort()).to.deep.equal(Object.keys(dimensions).sort());
  });
});
