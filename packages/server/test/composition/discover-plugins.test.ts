import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'chai';
import { discoverPlugins, importPlugin } from '../../src/composition/discover-plugins.js';

describe('discoverPlugins', () => {
  let project: string;
  before(() => {
    project = mkdtempSync(join(tmpdir(), 'moe-plugins-'));
    addPackage('with-moe', { moe: {}, type: 'module', exports: { import: './index.js' } }, "export default 'with-moe';");
    addPackage('without-moe', { main: 'index.js' }, '');
    addPackage('transitive', { moe: {}, main: 'index.js' }, '');
    writeFileSync(join(project, 'package.json'), JSON.stringify({ dependencies: { 'with-moe': '1', 'without-moe': '1', missing: '1' } }));
    mkdirSync(join(project, 'below'));
    writeFileSync(join(project, 'local.js'), 'module.exports = 1;');
  });
  after(() => {
    rmSync(project, { recursive: true });
  });

  function addPackage(name: string, manifest: object, code: string): void {
    const folder = join(project, 'node_modules', name);
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'package.json'), JSON.stringify({ name, version: '1.0.0', ...manifest }));
    writeFileSync(join(folder, 'index.js'), code);
  }

  const sources = (options: { named?: string[]; isEnabled?: boolean; directory?: string }, builtIn: string[] = []): string[] =>
    discoverPlugins({ directory: project, named: [], isEnabled: true, ...options }, builtIn).map(({ source }) => source);

  it('finds direct dependencies with a moe field, never transitive ones', () => {
    expect(sources({})).to.deep.equal(['with-moe']);
    expect(sources({ directory: join(project, 'below') })).to.deep.equal(['with-moe']);
  });

  it('leaves out what is built in, and everything with --no-plugins', () => {
    expect(sources({}, ['with-moe'])).to.deep.equal([]);
    expect(sources({ isEnabled: false })).to.deep.equal([]);
    expect(sources({ isEnabled: false, named: ['transitive'] })).to.deep.equal(['transitive']);
  });

  it('imports a package that has an import condition only', async () => {
    const [candidate] = discoverPlugins({ directory: project, named: [], isEnabled: true }, []);
    expect(candidate && (await importPlugin(candidate))).to.equal('with-moe');
  });

  it('takes paths of files and folders, relative to the working directory', () => {
    const named = ['./local.js', './node_modules/transitive', './nothing.js'];
    const found = discoverPlugins({ directory: project, named, isEnabled: false }, []);
    expect(found.map(({ url }) => url?.split('/').at(-1))).to.deep.equal(['local.js', 'index.js', undefined]);
    expect(found.every(({ isRequired }) => isRequired)).to.equal(true);
  });

  it('says what was looked for when a named plugin is not there', async () => {
    const [candidate] = discoverPlugins({ directory: project, named: ['nowhere'], isEnabled: false }, []);
    const error = candidate && (await importPlugin(candidate).catch((thrown: unknown) => thrown));
    expect(error).to.have.property('code', 'MOE_PLUGIN_LOAD');
    expect(error).to.have.property('message').that.contains('nowhere');
  });
});
