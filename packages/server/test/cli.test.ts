import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { basename, join } from 'node:path';
import { expect } from 'chai';
import { fixtureFolders, pocketDictionary } from '@moe-server/test-kit';
import { run } from '../src/cli.js';
import type { DeclaredRule } from '../src/composition/declared-rules.js';
import { exitStatus } from '../src/exit-status.js';

interface PlannedLayer {
  readonly name: string;
  readonly kind: 'moe' | 'linear';
  readonly scheme: string;
  readonly experts?: readonly number[];
}

interface Reference {
  readonly family: string;
  readonly schemes: Readonly<Record<string, string>>;
}

/** The names that reference.json uses; a module it does not list is bf16. */
const schemeNames: Readonly<Record<string, string>> = {
  nvfp4: 'nvfp4.w4a4',
  nvfp4_a16: 'nvfp4.w4a16',
  fp8: 'fp8.tensor.static',
  fp8_chan: 'fp8.channel',
  fp8_block: 'fp8.block128',
};

/** A module of the checkpoint for everything that the layer holds: one projection per expert, one of those that a fused linear joins. */
function modulesOf({ name, kind, experts = [] }: PlannedLayer): string[] {
  if (kind === 'moe') return experts.map((expert) => `${name.replace(/#.*/, '')}.${String(expert)}.gate_proj`);
  return [name.replace('.qkv_proj', '.q_proj').replace('.gate_up_proj', '.gate_proj')];
}

function expectedScheme({ family, schemes }: Reference, module: string): string {
  const listed = schemes[module] ?? schemes[module.replace(/\.experts\..*/, '.experts.*')];
  if (listed !== undefined) return schemeNames[listed] ?? listed;
  return family === 'gpt_oss' && module.includes('.experts.') ? 'mxfp4.w4a16' : 'bf16';
}

async function moeServer(...args: string[]): Promise<{ status: number; out: string; err: string }> {
  let out = '';
  let err = '';
  const terminal = { out: { write: (text: string) => (out += text) }, err: { write: (text: string) => (err += text) } };
  const status = await run(args, {}, terminal);
  return { status, out, err };
}

describe('moe-server', function () {
  this.timeout(20_000);

  it('prints its version and a help with examples', async () => {
    expect((await moeServer('--version')).out).to.match(/^\d+\.\d+\.\d+\n$/);
    const help = await moeServer('--help');
    expect(help.status).to.equal(exitStatus.ok);
    expect(help.out)
      .to.contain('Examples:')
      .and.to.contain('start')
      .and.to.contain('plan')
      .and.to.contain('bench')
      .and.to.contain('backends');
    const startHelp = await moeServer('start', '--help');
    for (const flag of [
      '--model',
      '--port',
      '--max-model-len',
      '--api-key',
      '--kv-cache-dtype',
      '--numerics',
      'MOE_API_KEY',
      'Exit status',
    ]) {
      expect(startHelp.out).to.contain(flag);
    }
  });

  it('benches kernels on the layers of a shape, as text and as JSON', async () => {
    const args = [
      'bench',
      '--kernels',
      '--device',
      'reference',
      '--no-plugins',
      '--shape',
      '32,32,4,2',
      '--scheme',
      'bf16',
      '--tokens',
      '2,1',
    ];
    const text = await moeServer(...args);
    expect(text.status).to.equal(exitStatus.ok);
    expect(text.out)
      .to.match(/^before .* GB\/s, dot products .* Gop\/s$/m)
      .and.to.match(/^after /m);
    expect(text.out)
      .to.match(/^experts in bf16: 4 experts of 32 x 32, top-2$/m)
      .and.to.match(/^ {2}reference\/\S+ +1 +[\d.]+ µs /m);
    const json = await moeServer(...args, '--json');
    const { classes, rates, failed } = JSON.parse(json.out) as {
      readonly classes: readonly {
        readonly layer: string;
        readonly figures: readonly { readonly numTokens: number; readonly ofFloor: number }[];
      }[];
      readonly rates: { readonly before: { readonly bandwidth: number } };
      readonly failed: readonly unknown[];
    };
    expect(classes.map(({ layer }) => layer)).to.deep.equal(['experts in bf16', 'linear in bf16']);
    expect(classes[0]?.figures.map(({ numTokens }) => numTokens)).to.deep.equal([1, 2]);
    expect(rates.before.bandwidth).to.be.greaterThan(0);
    expect(failed).to.deep.equal([]);
  });

  for (const [what, args, message] of [
    ['a bench without its kind', [], /say moe-server bench --kernels/],
    ['a shape that is none', ['--kernels', '--shape', '32'], /--shape 2048,768,128,8/],
    ['sizes that are none', ['--kernels', '--tokens', '1,many'], /--tokens .* "1,many"/],
    ['both a model and a shape', ['--kernels', '--model', pocketDictionary, '--shape', '32,32,4,2'], /exclude each other/],
    ['a backend that nobody has', ['--kernels', '--backend', 'nobody', '--device', 'reference', '--no-plugins'], /there are reference/],
  ] as const) {
    it(`refuses ${what}`, async () => {
      const { status, err } = await moeServer('bench', ...args);
      expect(status).to.equal(exitStatus.usage);
      expect(err).to.match(message);
    });
  }

  it('suggests the flag that was meant', async () => {
    const { status, err } = await moeServer('start', '--prot', '9000');
    expect(status).to.equal(exitStatus.usage);
    expect(err).to.contain('--port');
    expect((await moeServer('strat')).err).to.contain('start');
  });

  it('refuses a value that is none with status 64', async () => {
    const { status, err } = await moeServer('start', '--port', 'x');
    expect(status).to.equal(exitStatus.usage);
    expect(err).to.equal('error: --port: expected a whole number from 0 to 65535, got "x"\n');
  });

  it('says in one sentence that a folder is no model, with status 3', async () => {
    const { status, err } = await moeServer('plan', '--model', '/does/not/exist');
    expect(status).to.equal(exitStatus.checkpoint);
    expect(err.trimEnd().split('\n')).to.have.length(1);
    expect(err).to.contain('/does/not/exist');
  });

  it('ends with status 64 and the cause when the port is taken', async () => {
    const other = createServer();
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
    const { port } = other.address() as AddressInfo;
    const { status, err } = await moeServer('start', '--port', String(port));
    other.close();
    expect(status).to.equal(exitStatus.usage);
    expect(err).to.contain(`cannot listen on 127.0.0.1:${String(port)}: another program listens there`);
  });

  it('ends with status 4 when a plugin that was named cannot be used', async () => {
    const { status, err } = await moeServer('backends', '--plugin', 'no-such-plugin');
    expect(status).to.equal(exitStatus.plugin);
    expect(err).to.contain('no-such-plugin');
  });

  it('plans the bundled model as a table and as JSON', async () => {
    const table = await moeServer('plan', '--model', pocketDictionary, '--as', 'cpu-avx2');
    expect(table.out).to.contain('nvfp4.w4a4').and.to.contain('fp8.tensor.static').and.to.contain('lm_head');
    const json = await moeServer('plan', '--model', pocketDictionary, '--as', 'cpu-avx2', '--json');
    const plan = JSON.parse(json.out) as { layers: { name: string; scheme: string }[]; assumesBuilt: boolean };
    expect(plan.assumesBuilt).to.equal(true);
    expect(plan.layers.find(({ name }) => name === 'model.layers.1.mlp.experts')?.scheme).to.equal('nvfp4.w4a4');
  });

  for (const folder of fixtureFolders()) {
    it(`names the scheme of every layer of ${basename(folder)}`, async () => {
      const { status, out } = await moeServer('plan', '--model', folder, '--as', 'cpu-avx2', '--json');
      const { layers } = JSON.parse(out) as { layers: PlannedLayer[] };
      const reference = JSON.parse(readFileSync(join(folder, 'reference.json'), 'utf8')) as Reference;
      expect(status).to.equal(exitStatus.ok);
      for (const layer of layers)
        for (const module of modulesOf(layer)) expect(layer.scheme, module).to.equal(expectedScheme(reference, module));
    });
  }

  it('explains every refusal for a device that nothing serves, with status 2', async () => {
    const { status, out } = await moeServer('plan', '--model', pocketDictionary, '--as', 'sm_75', '--explain');
    expect(status).to.equal(exitStatus.unserved);
    expect(out).to.contain('not served').and.to.contain('refused');
  });

  it('refuses settings for schemes that nobody knows', async () => {
    for (const flag of ['--numerics.nvfp5', '--moe-backend.nvfp5']) {
      const { status, err } = await moeServer('plan', '--as', 'cpu-avx2', flag, 'wider');
      expect(status, flag).to.equal(exitStatus.usage);
      expect(err, flag).to.contain('nvfp5').and.to.contain('nvfp4.w4a4');
    }
  });

  it('lists the devices it knows when one is unknown', async () => {
    const { status, err } = await moeServer('plan', '--as', 'gb11');
    expect(status).to.equal(exitStatus.usage);
    expect(err).to.contain('gb10');
  });

  it('lists plugins and rules', async () => {
    const { out } = await moeServer('backends', '--json');
    const { plugins, rules } = JSON.parse(out) as { plugins: { name: string }[]; rules: DeclaredRule[] };
    expect(plugins.map(({ name }) => name)).to.include('cpu');
    expect(rules.some(({ backend, kind }) => backend === 'cpu' && kind === 'moe')).to.equal(true);
    const b12x = rules.find(({ backend, rule }) => backend === 'b12x' && rule === 'nvfp4-same');
    expect(b12x).to.deep.include({ kind: 'moe', plugin: 'b12x', built: false, runsHere: false });
    expect(b12x?.notBuilt).to.match(/\w+/);
    expect(b12x?.declares).to.deep.include({ schemes: ['nvfp4.w4a4'], device: { type: 'cuda', sm: [120, 121] } });
    expect(b12x?.declares).to.include.keys('activations', 'sizes', 'numExperts', 'topK', 'tokens', 'arithmetic', 'layout');
    const table = (await moeServer('backends')).out;
    expect(table).to.match(/^ +experts +nvfp4-same +nvfp4\.w4a4 +SM 12\.0, 12\.1 +as scheme +H % 128, I % 64 +tp silu +not built$/m);
    expect(table).to.match(/^ +linear +fp8-wider +fp8\.\* +SM 8\.0 and up +bf16 /m);
  });
});
