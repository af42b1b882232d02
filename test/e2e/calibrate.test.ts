import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Plan } from '@moe-server/core';
import { pocketDictionary } from '@moe-server/test-kit';
import { expect } from 'chai';
import { moeServer, nativeProblem } from './server-process.js';

/** The part of `calibrate --json` that is looked at. */
interface Printed {
  readonly fingerprint: string;
  readonly file: string;
  readonly failed: readonly unknown[];
  readonly classes: readonly {
    readonly layer: string;
    readonly scheme: string;
    readonly numLayers: number;
    readonly rules: readonly {
      readonly backend: string;
      readonly rule: string;
      readonly costUs: number | null;
      readonly spreadUs: number | null;
    }[];
  }[];
}

describe('moe-server calibrate', function () {
  this.timeout(60_000);
  let cache: string | undefined;
  let printed: Printed;
  const flags: string[] = [];

  before(async function () {
    const problem = await nativeProblem();
    if (problem !== undefined) {
      console.log(`    skipped: ${problem}`);
      this.skip();
    }
    cache = mkdtempSync(join(tmpdir(), 'moe-cache-'));
    flags.push('--model', pocketDictionary, '--cache-dir', cache, '--max-num-batched-tokens', '16', '--threads', '1', '--no-plugins');
    const { status, out, err } = await moeServer('calibrate', ...flags, '--budget', '0.5', '--json');
    expect(status, err).to.equal(0);
    expect(err).to.match(/5 kinds of layers, \d+ times to take, about \d+ s/);
    expect(err).to.contain('100 %');
    printed = JSON.parse(out) as Printed;
  });
  after(() => {
    if (cache !== undefined) rmSync(cache, { recursive: true });
  });

  async function planOf(...more: string[]): Promise<{ readonly plan: Plan; readonly err: string }> {
    const { status, out, err } = await moeServer('plan', ...flags, '--json', ...more);
    expect(status, err).to.equal(0);
    return { plan: JSON.parse(out) as Plan, err };
  }

  it('times every kernel that could serve each kind of layer', () => {
    expect(printed.failed).to.deep.equal([]);
    expect(printed.classes.reduce((sum, { numLayers }) => sum + numLayers, 0)).to.equal(25);
    for (const { rules } of printed.classes) {
      expect(rules).to.have.length.of.at.least(2);
      const costs = rules.map(({ costUs }) => costUs);
      for (const cost of costs) expect(cost).to.be.greaterThan(0);
      expect(costs).to.deep.equal([...costs].sort((a, b) => (a ?? 0) - (b ?? 0)));
    }
  });

  it('lets plan rank by it, say so, and name the evidence', async () => {
    const { plan, err } = await planOf();
    expect(err).to.equal('');
    expect(plan.evidence).to.deep.equal({ environment: printed.fingerprint, numClasses: 5 });
    for (const { layer, rules } of printed.classes) {
      const bound = plan.layers.find(({ name }) => name === layer)?.bindings[0];
      const cost = rules.find(({ rule }) => rule === bound?.rule)?.costUs ?? Infinity;
      const [best] = rules;
      expect(cost - (best?.costUs ?? 0)).to.be.at.most(Math.max(0.03 * (best?.costUs ?? 0), best?.spreadUs ?? 0));
      expect(bound?.because).to.match(/^measured .*\(\d{4}-\d\d-\d\d\)/);
    }
  });

  it('is ignored on demand, and for other threads or another device', async () => {
    for (const more of [['--no-calibration'], ['--threads', '3'], ['--as', 'cpu']]) {
      const { plan } = await planOf(...more);
      expect(plan.evidence, more.join(' ')).to.equal(undefined);
      for (const { bindings } of plan.layers) expect(bindings[0]?.because).to.not.contain('measured');
    }
  });

  it('says once that what was kept is damaged, and plans by priority', async () => {
    writeFileSync(printed.file, '{"version": 1');
    const { plan, err } = await planOf();
    expect(err.trim().split('\n')).to.have.length(1);
    expect(err).to.contain(printed.file).and.to.contain('ignored');
    expect(plan.evidence).to.equal(undefined);
  });
});
