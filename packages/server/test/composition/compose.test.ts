import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fixtureFolder } from '@moe-server/test-kit';
import type { EngineEvent } from '@moe-server/engine';
import { resolveSampling } from '@moe-server/engine';
import { expect } from 'chai';
import { createEngine, loadPlugins } from '../../src/composition/compose.js';

const core = fileURLToPath(import.meta.resolve('@moe-server/core'));

describe('loadPlugins', () => {
  let project: string;
  before(() => {
    project = mkdtempSync(join(tmpdir(), 'moe-compose-'));
    const folder = join(project, 'node_modules', 'broken');
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'package.json'), JSON.stringify({ name: 'broken', version: '1.0.0', moe: {}, main: 'index.js' }));
    writeFileSync(join(folder, 'index.js'), "throw new Error('no such GPU');");
    writeFileSync(join(project, 'package.json'), JSON.stringify({ dependencies: { broken: '1' } }));
    const plugin = `import { definePlugin } from ${JSON.stringify(core)};
      export default definePlugin({ name: 'mine', version: '1.2.3', contract: 1, apply: () => {} });`;
    writeFileSync(join(project, 'mine.mjs'), plugin);
  });
  after(() => {
    rmSync(project, { recursive: true });
  });

  it('loads the built-in plugins and those that are named', async () => {
    const { host } = await loadPlugins({ directory: project, plugin: ['./mine.mjs'], plugins: false });
    expect(host.plugins.map(({ name, source }) => [name, source])).to.deep.equal([
      ['cpu', '@moe-server/backend-cpu'],
      ['b12x', '@moe-server/backend-b12x'],
      ['cutlass', '@moe-server/backend-cutlass'],
      ['triton', '@moe-server/backend-triton'],
      ['mine', './mine.mjs'],
    ]);
  });

  it('goes on without a plugin that was only found, and says why', async () => {
    const { host, problems } = await loadPlugins({ directory: project });
    expect(host.plugins.map(({ name }) => name)).to.deep.equal(['cpu', 'b12x', 'cutlass', 'triton']);
    expect(problems).to.have.length(1);
    expect(problems[0]).to.match(/broken.*no such GPU/);
  });

  it('stops for a plugin that was named', async () => {
    const error = await loadPlugins({ directory: project, plugin: ['broken'] }).catch((thrown: unknown) => thrown);
    expect(error).to.have.property('code', 'MOE_PLUGIN_LOAD');
  });
});

describe('createEngine', function () {
  this.timeout(20_000);
  const model = fixtureFolder('mixtral-bf16') ?? '';
  const small = { model, device: 'reference', maxModelLen: 64, maxNumSeqs: 2, maxNumBatchedTokens: 16 } as const;

  it('runs a model in this process, and shows what it did on the way', async () => {
    const seen: string[] = [];
    const { engine, info, dispose } = await createEngine(small, {
      onPlugins: () => seen.push('plugins'),
      onPlan: () => seen.push('plan'),
      onProgress: ({ bytesDone, bytesTotal }) => {
        if (bytesDone === bytesTotal) seen.push('loaded');
      },
    });
    expect(seen.slice(0, 3)).to.deep.equal(['plugins', 'plan', 'loaded']);
    expect(info).to.deep.include({ architecture: 'MixtralForCausalLM', maxModelLen: 64, maxNumSeqs: 2 });
    const events: EngineEvent[] = [];
    engine.onEvent((event) => events.push(event));
    const context = { vocabSize: info.vocabSize, maxModelLen: 64, promptLength: 3 };
    const sampling = resolveSampling({ maxTokens: 2, ignoreEos: true }, info.generationDefaults, context);
    engine.addRequest({ id: 'a', promptTokenIds: [1, 2, 3], sampling });
    await engine.drain();
    await dispose();
    expect(events.map(({ type }) => type)).to.deep.equal(['token', 'token', 'finish']);
  });

  it('refuses settings that contradict each other before it reads anything', async () => {
    const error = await createEngine({ ...small, maxNumSeqs: 32 }).catch((thrown: unknown) => thrown);
    expect(error).to.have.property('code', 'MOE_USAGE');
    expect(error).to.have.property('message').that.contains('--max-num-batched-tokens 16 is less than --max-num-seqs 32');
  });

  it('stops loading when asked to', async () => {
    const controller = new AbortController();
    const loading = createEngine(small, {
      signal: controller.signal,
      onPlan: () => {
        controller.abort();
      },
    });
    expect(await loading.catch((thrown: unknown) => thrown)).to.have.property('name', 'AbortError');
  });
});
