import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'chai';
import { readScopedFlags } from '../../src/config/backend-settings.js';
import { resolveConfig } from '../../src/config/server-config.js';
import type { ConfigInputs } from '../../src/config/server-config.js';

describe('resolveConfig', () => {
  let folder: string;
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'moe-config-'));
  });
  after(() => {
    rmSync(folder, { recursive: true });
  });

  const write = (content: unknown): string => {
    const file = join(folder, 'config.json');
    writeFileSync(file, typeof content === 'string' ? content : JSON.stringify(content));
    return file;
  };
  const resolve = (inputs: Partial<ConfigInputs> = {}): ReturnType<typeof resolveConfig> =>
    resolveConfig({ flags: {}, scopedFlags: [], environment: {}, file: undefined, ...inputs });

  it('has a default for everything', () => {
    const config = resolve();
    expect(config).to.deep.include({ host: '127.0.0.1', port: 8000, maxNumSeqs: 64, kvCacheDtype: 'auto', enablePrefixCaching: true });
    expect(config.sources.port).to.deep.equal({ type: 'default', text: 'default of --port' });
    expect(config.preferences).to.deep.equal([]);
  });

  it('lets flags win over the environment, and the environment over the file', () => {
    const file = write({ port: 1, host: 'a', 'max-num-seqs': 3 });
    const config = resolve({ file, environment: { MOE_PORT: '2', MOE_HOST: 'b' }, flags: { port: '3' } });
    expect([config.port, config.host, config.maxNumSeqs]).to.deep.equal([3, 'b', 3]);
    expect([config.sources.port.type, config.sources.host.type, config.sources.maxNumSeqs.type]).to.deep.equal([
      'flag',
      'environment',
      'file',
    ]);
  });

  it('takes keys of a file with dashes or underscores, and negated switches', () => {
    const config = resolve({ file: write({ max_model_len: '4k', 'no-plugins': true, enable_prefix_caching: false, api_key: ['a', 'b'] }) });
    expect(config).to.deep.include({ maxModelLen: 4000, plugins: false, enablePrefixCaching: false });
    expect(config.apiKey).to.deep.equal(['a', 'b']);
  });

  it('splits lists in the environment at commas', () => {
    expect(resolve({ environment: { MOE_API_KEY: 'a,b' } }).apiKey).to.deep.equal(['a', 'b']);
  });

  it('reads sizes', () => {
    const size = (text: string): number | undefined => resolve({ flags: { kvCacheMemoryBytes: text } }).kvCacheMemoryBytes;
    expect(['512', '512M', '4GiB', '1.5g', '2GB'].map(size)).to.deep.equal([512, 2 ** 29, 2 ** 32, 1.5 * 2 ** 30, 2e9]);
  });

  it('turns named backends into preferences with scope and source', () => {
    const { scoped } = readScopedFlags(['--moe-backend.fp8', 'cutlass', '--linear-backend.nvfp4.w4a4=!cpu', '--nvfp4-moe-backend', 'b12x']);
    const config = resolve({ flags: { moeBackend: ['b12x', '!triton'] }, scopedFlags: scoped, environment: { MOE_FP8_BACKEND: 'cpu' } });
    expect(config.preferences.map(({ effect, backend, scope, source }) => [effect, backend, scope, source.text])).to.deep.equal([
      ['prefer', 'b12x', { kind: 'moe' }, '--moe-backend b12x'],
      ['forbid', 'triton', { kind: 'moe' }, '--moe-backend !triton'],
      ['prefer', 'cpu', { kind: 'moe', family: 'fp8' }, 'MOE_FP8_BACKEND=cpu'],
      ['prefer', 'cutlass', { kind: 'moe', family: 'fp8' }, '--moe-backend.fp8 cutlass'],
      ['forbid', 'cpu', { kind: 'linear', scheme: 'nvfp4.w4a4' }, '--linear-backend.nvfp4.w4a4 !cpu'],
      ['prefer', 'b12x', { kind: 'moe', family: 'nvfp4' }, '--nvfp4-moe-backend b12x'],
    ]);
  });

  it('requires backends where the policy says so', () => {
    expect(resolve({ flags: { moeBackend: ['b12x'], moeBackendPolicy: 'require' } }).preferences[0]?.effect).to.equal('require');
  });

  it('keeps numerics per scheme', () => {
    const { scoped } = readScopedFlags(['--numerics.nvfp4', 'wider']);
    const config = resolve({ flags: { numerics: 'same' }, scopedFlags: scoped });
    expect(config.numericsPolicy).to.deep.equal({ default: 'same', byScheme: { nvfp4: 'wider' } });
  });

  const faults: readonly [name: string, inputs: () => Partial<ConfigInputs>, message: RegExp][] = [
    ['a port that is no number', () => ({ flags: { port: 'x' } }), /^--port: expected a whole number from 0 to 65535, got "x"$/],
    ['a port out of range', () => ({ environment: { MOE_PORT: '70000' } }), /^MOE_PORT: /],
    ['a size that is none', () => ({ flags: { kvCacheMemoryBytes: '4 parsecs' } }), /^--kv-cache-memory-bytes: .*512M/],
    ['an unknown choice', () => ({ flags: { numerics: 'exact' } }), /^--numerics: expected one of auto, same, wider, float32, approximate/],
    ['a scoped choice', () => ({ scopedFlags: readScopedFlags(['--numerics.fp8', 'x']).scoped }), /^--numerics.fp8 x: /],
    ['a name that is none', () => ({ flags: { moeBackend: ['a b'] } }), /no backend's name/],
    ['a file that is missing', () => ({ file: '/does/not/exist.json' }), /^--config \/does\/not\/exist.json: ENOENT/],
    ['a file that is no JSON', () => ({ file: write('{') }), /JSON/],
    ['a file with an unknown key', () => ({ file: write({ prot: 1 }) }), /there is no setting "prot"/],
    ['a file with an object', () => ({ file: write({ port: {} }) }), /port: expected text/],
    ['a scoped flag without a value', () => ({ scopedFlags: readScopedFlags(['--moe-backend.fp8']).scoped }), /the value is missing/],
  ];
  for (const [name, inputs, message] of faults) {
    it(`refuses ${name}, naming the source`, () => {
      expect(() => resolve(inputs()))
        .to.throw(message)
        .with.property('code', 'MOE_USAGE');
    });
  }
});
