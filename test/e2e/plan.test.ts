import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Plan } from '@moe-server/core';
import { mixedQwen35Moe, pocketDictionary, writeSparseCheckpoint } from '@moe-server/test-kit';
import { expect } from 'chai';
import { exitStatus, run } from 'moe-server';

interface Outcome {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

/** `moe-server` in this process, with an environment of its own. */
async function moeServer(args: readonly string[], environment: NodeJS.ProcessEnv = {}): Promise<Outcome> {
  let out = '';
  let err = '';
  const terminal = { out: { write: (text: string) => (out += text) }, err: { write: (text: string) => (err += text) } };
  const status = await run(args, environment, terminal);
  return { status, out, err };
}

/** `experts nvfp4.w4a16: b12x`, each kind of layer once. */
function served(plan: Plan): string[] {
  const texts = plan.layers.map(
    ({ kind, role, scheme, bindings }) =>
      `${role === 'draft' ? 'draft ' : ''}${kind === 'moe' ? 'experts' : 'linear'} ${scheme}: ${bindings.map(({ backend }) => backend).join('+') || 'nobody'}`,
  );
  return [...new Set(texts)].sort();
}

const expertsOf = (plan: Plan): string[] => served(plan).filter((text) => text.includes('experts'));

describe('moe-server plan of a checkpoint that mixes NVFP4, FP8 and BF16', function () {
  this.timeout(30_000);
  let folder: string;
  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'moe-plan-'));
    await writeSparseCheckpoint(join(folder, 'model'), mixedQwen35Moe({ numLayers: 8, numExperts: 16 }));
  });
  after(() => {
    rmSync(folder, { recursive: true });
  });

  const planned = (args: readonly string[], environment: NodeJS.ProcessEnv = {}): Promise<Outcome> =>
    moeServer(['plan', '--model', join(folder, 'model'), '--as', 'gb10', '--no-plugins', ...args], environment);
  const planOf = async (args: readonly string[], environment: NodeJS.ProcessEnv = {}): Promise<Plan> => {
    const { status, out, err } = await planned([...args, '--json'], environment);
    expect(status, err).to.equal(exitStatus.ok);
    return JSON.parse(out) as Plan;
  };
  const configFile = (content: object): string => {
    const file = join(folder, 'moe.json');
    writeFileSync(file, JSON.stringify(content));
    return file;
  };

  const threeBackends = ['draft experts bf16: triton', 'experts fp8.tensor.static: cutlass', 'experts nvfp4.w4a16: b12x'];

  it('binds three backends when an FP4-only one is preferred for everything, and says so', async () => {
    for (const name of ['b12x', 'flashinfer_b12x']) {
      const { status, out, err } = await planned(['--moe-backend', name]);
      expect([status, err]).to.deep.equal([exitStatus.ok, '']);
      expect(out).to.match(/experts +nvfp4\.w4a16 +b12x\/nvfp4-w4a16 +same +no/);
      expect(out).to.match(/experts +fp8\.tensor\.static +cutlass\/fp8-same +same +no/);
      expect(out).to.match(/draft experts +bf16 +triton\/bf16 +same +no/);
      expect(out.replaceAll(/\s+/g, ' ')).to.contain(`--moe-backend ${name} (flag): b12x does not serve`);
      expect(expertsOf(await planOf(['--moe-backend', name]))).to.deep.equal(threeBackends);
    }
    const { notices } = await planOf(['--moe-backend', 'flashinfer_b12x']);
    expect(notices).to.include('--moe-backend flashinfer_b12x (flag): flashinfer_b12x was read as b12x.');
  });

  it('makes one error of every group that a required backend cannot serve, with what would and the source, and status 2', async () => {
    const { status, err } = await planned(['--moe-backend', 'b12x', '--moe-backend-policy', 'require']);
    expect(status).to.equal(exitStatus.unserved);
    expect(err.match(/^error: /gm)).to.have.length(1);
    expect(err).to.contain('(2 groups)').and.to.contain('experts fp8.tensor.static').and.to.contain('draft experts bf16');
    expect(err).to.contain('It would be served by cutlass or triton without --moe-backend b12x (flag).');
  });

  const overrides: readonly [name: string, args: () => readonly string[], environment: NodeJS.ProcessEnv, source: RegExp][] = [
    ['a flag beside the environment', () => ['--moe-backend.fp8', 'triton'], { MOE_BACKEND: 'b12x' }, /--moe-backend\.fp8 triton \(flag\)/],
    [
      'a flag beside a file',
      () => ['--fp8-moe-backend', 'triton', '--config', configFile({ 'moe-backend': 'b12x' })],
      {},
      /--fp8-moe-backend triton \(flag\)/,
    ],
    [
      'the environment beside a flag',
      () => ['--moe-backend', 'b12x'],
      { MOE_FP8_BACKEND: 'triton' },
      /MOE_FP8_BACKEND=triton \(environment\)/,
    ],
    [
      'the environment beside a file',
      () => ['--config', configFile({ 'moe-backend': 'b12x' })],
      { VLLM_FP8_MOE_BACKEND: 'triton' },
      /VLLM_FP8_MOE_BACKEND=triton \(environment\)/,
    ],
    [
      'a file beside a flag',
      () => ['--moe-backend', 'b12x', '--config', configFile({ 'moe-backend.fp8': 'triton' })],
      {},
      /moe\.json: moe-backend\.fp8 triton \(file\)/,
    ],
    [
      'a file beside the environment',
      () => ['--config', configFile({ moe_backend: { fp8: 'triton' } })],
      { MOE_BACKEND: 'b12x' },
      /moe\.json: moe-backend .*\(file\)/,
    ],
    ['a flag beside a flag', () => ['--moe-backend', 'b12x', '--moe-backend.fp8', 'triton'], {}, /--moe-backend\.fp8 triton \(flag\)/],
  ];
  for (const [name, args, environment, source] of overrides) {
    it(`lets a setting for FP8 in ${name} win over one for everything`, async () => {
      const plan = await planOf(args(), environment);
      expect(expertsOf(plan)).to.deep.equal([
        'draft experts bf16: triton',
        'experts fp8.tensor.static: triton',
        'experts nvfp4.w4a16: b12x',
      ]);
      const fp8 = plan.layers.find(({ kind, scheme }) => kind === 'moe' && scheme === 'fp8.tensor.static');
      expect(fp8?.bindings[0]?.because)
        .to.match(/^preferred by /)
        .and.match(source);
    });
  }

  it('takes roles, layer patterns and auto, the narrowest first', async () => {
    const plan = await planOf([
      ...['--moe-backend', 'triton', '--moe-backend.nvfp4', 'auto', '--speculative-config', '{"moe_backend":"cutlass"}'],
      ...['--moe-backend.layers', 'model.language_model.layers.0.*=cutlass'],
    ]);
    expect(expertsOf(plan)).to.deep.equal([
      'draft experts bf16: cutlass',
      'experts fp8.tensor.static: triton',
      'experts nvfp4.w4a16: b12x',
      'experts nvfp4.w4a16: cutlass',
    ]);
    const first = plan.layers.find(({ name, kind }) => kind === 'moe' && name.includes('.layers.0.'));
    expect(first?.bindings[0]?.backend).to.equal('cutlass');
  });

  it("falls through a name of vLLM's that no plugin has, and refuses it when required", async () => {
    const { notices } = await planOf(['--moe-backend', 'deep_gemm']);
    expect(notices.join('\n')).to.contain(
      'no plugin with a backend named deep_gemm is installed; these would serve: b12x, cutlass and triton.',
    );
    const { status, err } = await planned(['--moe-backend', 'deep_gemm'], { MOE_BACKEND_POLICY: 'require' });
    expect(status).to.equal(exitStatus.unserved);
    expect(err).to.contain('without --moe-backend deep_gemm (flag)');
  });

  it('refuses names that nobody knows with status 64', async () => {
    const { status, err } = await planned([], { MOE_NVFP4_BACKEND: 'b12' });
    expect(status).to.equal(exitStatus.usage);
    expect(err).to.contain('MOE_NVFP4_BACKEND=b12: there is no backend named b12').and.to.contain('Did you mean b12x?');
  });

  it('plans for one of several ranks', async () => {
    const cut = await planOf(['--tensor-parallel-size', '2']);
    const spread = await planOf(['--tensor-parallel-size', '2', '--enable-expert-parallel']);
    const experts = ({ layers }: Plan): number | undefined => layers.find(({ kind }) => kind === 'moe')?.experts?.length;
    expect([experts(cut), experts(spread)]).to.deep.equal([16, 8]);
    // b12x declares no expert parallel.
    expect(expertsOf(cut)).to.include('experts nvfp4.w4a16: b12x');
    expect(expertsOf(spread)).to.include('experts nvfp4.w4a16: cutlass');
  });

  it('takes only batch-invariant kernels where that is asked for', async () => {
    const { status, out } = await moeServer([
      'plan',
      '--model',
      pocketDictionary,
      '--as',
      'gb10',
      '--no-plugins',
      '--batch-invariant',
      '--json',
    ]);
    expect(status).to.equal(exitStatus.ok);
    expect(expertsOf(JSON.parse(out) as Plan)).to.deep.equal(['experts fp8.tensor.static: triton', 'experts nvfp4.w4a4: cutlass']);
    const refused = await planned([], { MOE_BATCH_INVARIANT: '1' });
    expect(refused.status).to.equal(exitStatus.unserved);
    expect(refused.err).to.contain('It would be served by b12x, cutlass or triton without --batch-invariant.');
  });

  it('takes kernels with float32 inputs where the KV cache that will be used is FP8, and everywhere when told so', async () => {
    const rulesOf = async (...args: readonly string[]): Promise<readonly (readonly [string | undefined, string | undefined])[]> => {
      const { status, out, err } = await moeServer([
        ...['plan', '--model', pocketDictionary, '--as', 'cpu-avx512', '--no-plugins', '--no-calibration', '--json'],
        ...args,
      ]);
      expect(status, err).to.equal(exitStatus.ok);
      const firstLayer = (JSON.parse(out) as Plan).layers.filter(({ name }) => /layers\.0\.self_attn|lm_head/.test(name));
      return firstLayer.map(({ name, bindings }) => [name.split('.').at(-1), bindings[0]?.rule]);
    };
    const rounded = [
      ['lm_head', 'bf16-avx512'],
      ['o_proj', 'fp8-wider-avx512'],
      ['qkv_proj', 'fp8-wider-avx512'],
    ];
    expect(await rulesOf()).to.deep.equal(rounded);
    expect(await rulesOf('--kv-cache-dtype', 'bf16')).to.deep.equal(rounded);
    expect(await rulesOf('--kv-cache-dtype', 'fp8')).to.deep.equal([...rounded.slice(0, 2), ['qkv_proj', 'fp8-wider-f32-avx512']]);
    expect(await rulesOf('--numerics', 'float32')).to.deep.equal(
      rounded.map(([name, rule]) => [name, rule?.replace('avx512', 'f32-avx512')]),
    );
  });

  it('keeps a plan and says what moved since', async () => {
    const file = join(folder, 'plan.lock.json');
    await planned(['--out', file]);
    expect(readFileSync(file, 'utf8')).to.contain('"moe-server plan"');
    expect((await planned(['--diff', file])).out).to.contain(`Nothing differs from ${file}.`);
    const { status, out } = await planned(['--diff', file, '--moe-backend', '!b12x']);
    expect(status).to.equal(exitStatus.ok);
    expect(out).to.match(/moved from b12x\/nvfp4-w4a16 to cutlass\/nvfp4-w4a16: .*--moe-backend !b12x \(flag\)/);
    const json = JSON.parse((await planned(['--diff', file, '--moe-backend', '!b12x', '--json'])).out) as { diff: { changes: unknown[] } };
    expect(json.diff.changes).to.not.be.empty;
  });

  it('refuses a kept plan that is none with status 64', async () => {
    const file = configFile({ port: 1 });
    expect((await planned(['--diff', file])).status).to.equal(exitStatus.usage);
    expect((await planned(['--diff', join(folder, 'none.json')])).err).to.match(/^error: --diff .*none\.json: ENOENT/);
  });

  it('has the fields that scripts rely on', async () => {
    const plan = await planOf([]);
    expect(plan).to.include.keys('device', 'layers', 'bytes', 'hash', 'notices', 'unserved');
    const layer = plan.layers.find(({ kind }) => kind === 'moe');
    expect(layer).to.include.keys('name', 'kind', 'role', 'scheme', 'experts', 'bindings', 'refused', 'eligible', 'bytes');
    expect(layer?.bindings[0]).to.include.keys('backend', 'rule', 'tokens', 'numerics', 'built', 'because');
    expect(layer?.refused[0]?.reasons[0]).to.include.keys('dimension', 'message', 'required', 'actual');
  });

  it('keeps to 120 columns when it explains', async () => {
    const { out } = await planned(['--explain', '--moe-backend', 'b12x']);
    const [directory, ...lines] = out.split('\n');
    expect(directory).to.equal(join(folder, 'model'));
    for (const line of lines) expect(line.length, line).to.be.at.most(120);
    expect(out)
      .to.contain('refused    b12x: it runs nvfp4.w4a4')
      .and.to.match(/refused +cpu\/.*needs a CPU/s);
  });
});

describe('moe-server start --plan', function () {
  this.timeout(60_000);
  let folder: string;
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'moe-lock-'));
  });
  after(() => {
    rmSync(folder, { recursive: true });
  });

  it('refuses to serve what moved, naming the layers and the reason, with status 2', async () => {
    const file = join(folder, 'plan.lock.json');
    const model = ['--model', pocketDictionary, '--no-plugins'];
    expect((await moeServer(['plan', ...model, '--as', 'gb10', '--out', file])).status).to.equal(exitStatus.ok);
    const { status, err } = await moeServer([
      ...['start', ...model, '--port', '0', '--simulate', 'gb10', '--plan', file, '--moe-backend.fp8', '!cutlass'],
    ]);
    expect(err).to.contain(`The plan in ${file} no longer holds for`);
    expect(err).to.contain('moved from cutlass/fp8-same to triton/fp8-same').and.to.contain('--moe-backend.fp8 !cutlass (flag)');
    expect(status).to.equal(exitStatus.unserved);
  });
});
