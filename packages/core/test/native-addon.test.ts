import { expect } from 'chai';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { isMoeError, type MoeError } from '../src/errors.js';
import { loadNativeAddon, platformSuffix } from '../src/native-addon.js';

const envVariable = 'MOE_TEST_ADDON_OVERRIDE';
const packageName = '@example/backend';

function errorOf(run: () => unknown): MoeError {
  try {
    run();
  } catch (error) {
    if (isMoeError(error)) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

describe('loadNativeAddon', () => {
  let folder: string;
  let root: string;
  let packageUrl: string;

  // What stands for an addon is JavaScript under another name: which file is taken is what counts, and Node's loader asks by extension.
  const write = (path: string, text: string) => {
    mkdirSync(join(path, '..'), { recursive: true });
    writeFileSync(path, text);
  };
  const load = (addonName = 'kernels') => loadNativeAddon({ packageName, packageUrl, addonName, envVariable });

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'moe-addon-'));
    root = join(folder, 'node_modules', '@example', 'backend');
    write(join(root, 'package.json'), JSON.stringify({ name: packageName }));
    // A package.json of another name between the module and the root does not end the search.
    write(join(root, 'dist', 'package.json'), '{ "type": "module" }');
    write(join(root, 'dist', 'src', 'addon.js'), '');
    packageUrl = pathToFileURL(join(root, 'dist', 'src', 'addon.js')).href;
    Reflect.deleteProperty(process.env, envVariable);
  });

  afterEach(() => {
    Reflect.deleteProperty(process.env, envVariable);
    rmSync(folder, { recursive: true });
  });

  it('lists every place with its reason and the remedy', () => {
    const error = errorOf(() => load());
    expect(error.code).to.equal('MOE_PLUGIN_ADDON');
    const [local, platform] = error.details.attempts as { place: string; reason: string }[];
    expect(local?.place).to.equal(join(root, 'build', 'Release', 'kernels.node'));
    expect(local?.reason).to.match(/^Cannot find module/);
    expect(platform?.place).to.equal(`@example/backend-${platformSuffix()}/kernels.node`);
    expect(error.message).to.contain('npm run build:native').and.to.contain(`install @example/backend-${platformSuffix()}`);
    for (const { place, reason } of [local, platform].filter((one) => one !== undefined))
      expect(error.message).to.contain(`\n  ${place}: ${reason}`);
  });

  it('says why a file that is there does not load, and goes on to the platform package', () => {
    write(join(root, 'build', 'Release', 'kernels.node'), 'not a shared library');
    const error = errorOf(() => load());
    const [local, platform] = error.details.attempts as { reason: string }[];
    expect(local?.reason).not.to.match(/^Cannot find module/);
    expect(platform?.reason).to.match(/^Cannot find module/);
  });

  it('tries nothing but the file of the environment variable when that is set', () => {
    process.env[envVariable] = join(folder, 'absent.node');
    const error = errorOf(() => load());
    expect((error.details.attempts as unknown[]).length).to.equal(1);
    expect(error.message).to.contain(`${envVariable} is set, so nothing else was tried`);
  });

  it('takes the file of the environment variable', () => {
    process.env[envVariable] = join(folder, 'addon.cjs');
    write(join(folder, 'addon.cjs'), 'module.exports = { from: "override" };');
    expect(load()).to.deep.equal({ from: 'override' });
  });

  it('takes the local build before the platform package', () => {
    // Folders load by their package.json, also with .node at the end: so a test needs no compiler.
    const asFolder = (path: string, from: string) => {
      write(join(path, 'package.json'), '{ "main": "index.cjs" }');
      write(join(path, 'index.cjs'), `module.exports = { from: "${from}" };`);
    };
    asFolder(join(folder, 'node_modules', '@example', `backend-${platformSuffix()}`, 'kernels.node'), 'platform');
    expect(load()).to.deep.equal({ from: 'platform' });
    asFolder(join(root, 'build', 'Release', 'kernels.node'), 'local');
    expect(load()).to.deep.equal({ from: 'local' });
  });

  it('says so when the caller is in no such package', () => {
    const error = errorOf(() => loadNativeAddon({ packageName: '@example/other', packageUrl, addonName: 'kernels', envVariable }));
    expect(error.message).to.contain('no package.json of @example/other above it');
  });
});

describe('platformSuffix', () => {
  it('names platform and architecture', () => {
    expect(platformSuffix()).to.match(new RegExp(`^${process.platform}-${process.arch}(-musl)?$`));
  });
});
