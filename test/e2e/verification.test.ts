import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { pocketDictionary } from '@moe-server/test-kit';
import { expect } from 'chai';
import type { ComposedEngine, EngineSettings } from 'moe-server';
import { createEngine } from 'moe-server';
import { nativeProblem, startServer } from './server-process.js';

const wrongPlugin = fileURLToPath(new URL('plugins/wrong-experts.js', import.meta.url));

describe('kernels are checked before they serve', function () {
  this.timeout(60_000);
  let folder: string;
  before(async function () {
    if ((await nativeProblem()) !== undefined) this.skip();
  });
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'moe-cache-'));
  });
  afterEach(() => {
    rmSync(folder, { recursive: true });
  });

  interface Opened {
    readonly composed: ComposedEngine;
    readonly refused: readonly string[];
    readonly warnings: readonly string[];
    readonly numPlans: number;
  }

  async function open(settings: Partial<EngineSettings>): Promise<Opened> {
    const refused: string[] = [];
    const warnings: string[] = [];
    let numPlans = 0;
    const quiet = (): undefined => undefined;
    const composed = await createEngine(
      { model: pocketDictionary, plugins: false, cacheDir: folder, threads: 2, ...settings },
      {
        log: { debug: quiet, info: quiet, error: quiet, warn: (_fields, message) => void warnings.push(message) },
        onRefused: (sentence) => void refused.push(sentence),
        onPlan: () => {
          numPlans++;
        },
      },
    );
    return { composed, refused, warnings, numPlans };
  }

  it('refuses a plugin that computes something else, with numbers, and serves with the next candidate', async () => {
    const { composed, refused, numPlans } = await open({ plugin: [wrongPlugin] });
    // Two rules, two kinds of expert layers; the one that quantizes inputs is not a candidate everywhere.
    expect(refused.length).to.be.within(2, 4);
    expect(numPlans).to.equal(refused.length + 1);
    for (const sentence of refused) {
      expect(sentence).to.match(
        /^wrong\/\w+ on model\.layers\.\d\.mlp\.experts computes something else than its rule declares: NMSE [\d.]+e[+-]\d/,
      );
    }
    const experts = composed.info.plan.layers.filter(({ kind }) => kind === 'moe');
    expect(new Set(experts.map(({ bindings: [binding] }) => binding?.backend))).to.deep.equal(new Set(['cpu']));
    for (const { refused: reasons } of experts) {
      expect(
        reasons.filter(({ backend }) => backend === 'wrong').flatMap((one) => one.reasons.map(({ dimension }) => dimension)),
      ).to.include('quarantined');
    }
    await composed.dispose();
  });

  it('says so on the terminal of a start, and answers', async () => {
    const server = await startServer('--plugin', wrongPlugin, '--cache-dir', folder);
    expect(server.output()).to.contain('computes something else than its rule declares');
    const response = await fetch(`${server.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ messages: [{ role: 'user', content: 'What does serendipity mean?' }], temperature: 0 }),
    });
    expect(await response.text()).to.contain('good luck');
    expect(await server.stop()).to.equal(0);
  });

  it('serves it when nobody checks', async () => {
    const { composed, refused } = await open({ plugin: [wrongPlugin], verifyKernels: false });
    expect(refused).to.deep.equal([]);
    expect(composed.info.plan.layers.find(({ kind }) => kind === 'moe')?.bindings[0]?.backend).to.equal('wrong');
    await composed.dispose();
  });

  it('remembers what it verified', async () => {
    const file = join(folder, 'verified-kernels.json');
    const { composed } = await open({});
    await composed.dispose();
    const written = readFileSync(file, 'utf8');
    expect(Object.keys((JSON.parse(written) as { kernels: object }).kernels)).to.have.length.greaterThan(3);
    const again = await open({});
    await again.composed.dispose();
    expect(readFileSync(file, 'utf8')).to.equal(written);
  });

  it('goes on where the cache is damaged, with one warning', async () => {
    const file = join(folder, 'verified-kernels.json');
    writeFileSync(file, '{"version":');
    const { composed, warnings } = await open({});
    await composed.dispose();
    expect(warnings).to.deep.equal(['the file of verified kernels cannot be used; kernels are verified again']);
    expect(JSON.parse(readFileSync(file, 'utf8'))).to.have.property('version', 1);
    expect(existsSync(`${file}.${String(process.pid)}.tmp`)).to.equal(false);
  });
});
