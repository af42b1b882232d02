import { expect } from 'chai';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { errorCodes, isMoeError, messageOf, MoeError, type ErrorCode } from '../src/errors.js';

/** docs/errors.md of the clone that this runs in. */
function readErrorPage(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'docs', 'errors.md'))) {
    const parent = dirname(folder);
    if (parent === folder) throw new Error('docs/errors.md is not above this test');
    folder = parent;
  }
  return readFileSync(join(folder, 'docs', 'errors.md'), 'utf8');
}

describe('docs/errors.md', () => {
  /** Rows of the tables: code, meaning, cause, remedy; the family is the heading above. */
  const rows = [...readErrorPage().matchAll(/^## .*\(`(\w+)`\)$|^\| `(MOE_\w+)` \|(.*)\|$/gm)];
  const documented = new Map<string, { readonly family: string; readonly cells: readonly string[] }>();
  let family = '';
  for (const [, heading, code, rest] of rows) {
    if (heading !== undefined) family = heading;
    else if (code !== undefined) documented.set(code, { family, cells: (rest ?? '').split(' | ').map((cell) => cell.trim()) });
  }

  it('has every code of the table, and no other', () => {
    expect([...documented.keys()].sort()).to.deep.equal(Object.keys(errorCodes).sort());
  });

  it('names each code once', () => {
    expect(rows.filter(([, heading]) => heading === undefined)).to.have.length(documented.size);
  });

  for (const [code, expected] of Object.entries(errorCodes)) {
    it(`says what ${code} means, where it comes from and what to do, under "${expected}"`, () => {
      const entry = documented.get(code);
      expect(entry?.family).to.equal(expected);
      expect(entry?.cells).to.have.length(3);
      for (const cell of entry?.cells ?? []) expect(cell.length, cell).to.be.greaterThan(10);
    });
  }
});

describe('MoeError', () => {
  it('carries code, family, details and cause', () => {
    const cause = new Error('below');
    const error = new MoeError('MOE_PLUGIN_LOAD', 'above', { plugin: 'x' }, { cause });
    expect(error).to.include({ name: 'MoeError', code: 'MOE_PLUGIN_LOAD', family: 'plugin', message: 'above', cause });
    expect(error.details).to.deep.equal({ plugin: 'x' });
  });

  it('crosses a process border as JSON', () => {
    const error = new MoeError('MOE_DEVICE_LOST', 'gone', { kernel: 'k' });
    const back = MoeError.fromJSON(JSON.parse(JSON.stringify(error)) as ReturnType<MoeError['toJSON']>);
    expect(back.toJSON()).to.deep.equal(error.toJSON());
    expect(back.family).to.equal('device');
  });

  it('takes a code that it does not know for an internal fault', () => {
    expect(MoeError.fromJSON({ code: 'MOE_FROM_TOMORROW' as ErrorCode, message: 'm', details: {} }).code).to.equal('MOE_INTERNAL');
  });

  it('is known across copies of the package', () => {
    expect(isMoeError({ [Symbol.for('moe.error')]: true })).to.equal(true);
    for (const other of [new Error('x'), null, undefined, 'MOE_INTERNAL', {}]) expect(isMoeError(other)).to.equal(false);
  });
});

describe('messageOf', () => {
  it('takes the message of an error, and the text of anything else', () => {
    expect([messageOf(new Error('a')), messageOf('b'), messageOf(undefined)]).to.deep.equal(['a', 'b', 'undefined']);
  });
});
