import { basename } from 'node:path';
import { isMoeError } from '@moe-server/core';
import type { CpuFeature, NumericsChoice } from '@moe-server/core';
import { supportedArchitectures } from '@moe-server/engine';
import { fixtureFolders, relativeL2 } from '@moe-server/test-kit';
import { expect } from 'chai';
import type { Mode } from './fixture.js';
import { Fixture } from './fixture.js';
import { RouterTap } from './router-tap.js';
import { RunningModel } from './running-model.js';
import type { DeviceName } from './running-model.js';

const fixtures = fixtureFolders().map((folder) => new Fixture(folder));
const supported = fixtures.filter(({ architecture }) => supportedArchitectures.some((name) => name === architecture));

const allPrompts = ['p1', 'p7', 'p33', 'p130'];

/** Where a whole model is judged. */
interface Setting {
  readonly title: string;
  readonly device: DeviceName;
  readonly features?: readonly CpuFeature[];
  /** Default wider, which lets a processor round inputs to bf16 where it multiplies those faster. */
  readonly numerics?: NumericsChoice;
  readonly mode: Mode;
  /** Prompts that are decoded; the TypeScript device is slow. */
  readonly decoded: readonly string[];
  /**
   * `where-sure`: steps whose margin is within the tolerance may differ. Inputs that are rounded to bf16 tip an FP8 number of the cache now
   * and then, and with it a close choice.
   */
  readonly tokens: 'equal' | 'where-sure';
}

const settings: readonly Setting[] = [
  { title: 'TypeScript device', device: 'typescript', mode: 'weight_only', decoded: ['p7'], tokens: 'equal' },
  { title: 'TypeScript device', device: 'typescript', mode: 'weight_only_kv', decoded: ['p7'], tokens: 'equal' },
  { title: 'CPU device', device: 'cpu', mode: 'weight_only', decoded: allPrompts, tokens: 'equal' },
  { title: 'CPU device', device: 'cpu', mode: 'weight_only_kv', decoded: allPrompts, tokens: 'where-sure' },
  {
    title: 'CPU device with float32 inputs',
    device: 'cpu',
    numerics: 'float32',
    mode: 'weight_only_kv',
    decoded: allPrompts,
    tokens: 'equal',
  },
  { title: 'CPU device without extensions', device: 'cpu', features: [], mode: 'weight_only_kv', decoded: allPrompts, tokens: 'equal' },
];

for (const { title, device, features, numerics = 'wider', mode, decoded, tokens } of settings) {
  describe(`reference checkpoints on the ${title}, ${mode}`, function () {
    this.timeout(120_000);
    for (const fixture of supported.filter((candidate) => candidate.has(mode))) {
      describe(fixture.name, () => {
        const tap = new RouterTap();
        let model: RunningModel;

        before(async () => {
          const kvCacheDType = mode === 'weight_only_kv' ? 'fp8' : 'bf16';
          const chosen = features === undefined ? {} : { features };
          model = await RunningModel.open(fixture.folder, { device, ...chosen, numerics, kvCacheDType, wrapDevice: tap.wrap });
        });

        after(() => {
          model.close();
        });

        for (const prompt of allPrompts) {
          it(`gives the last logits of ${prompt}`, async () => {
            const ids = fixture.prompt(prompt);
            const [logits] = await model.prefill(ids, [ids.length - 1]);
            const reference = fixture.tensor(`${mode}/logits_last/${prompt}`);
            const tolerance = fixture.tolerance(mode);
            expect(relativeL2(logits ?? [], reference)).to.be.at.most(tolerance.logits_last_rel_l2);
            expect(maxDifference(logits ?? [], reference)).to.be.at.most(tolerance.logits_last_max_abs);
          });
        }

        it('gives the logits of all positions of p33', async () => {
          const logits = await model.prefill(fixture.prompt('p33'));
          expectRows(fixture, mode, logits, `${mode}/p33/logits_all`);
          const flat = logits.flatMap((row) => [...row]);
          expect(relativeL2(flat, fixture.tensor(`${mode}/p33/logits_all`))).to.be.at.most(fixture.tolerance(mode).logits_all_rel_l2);
        });

        for (const prompt of decoded) {
          if (tokens === 'where-sure') {
            it(`prefers the greedy tokens of ${prompt} wherever the reference is sure`, async () => {
              await expectSureTokens(fixture, mode, prompt, model);
            });
            continue;
          }
          it(`decodes the 24 greedy tokens of ${prompt}`, async () => {
            const { tokenIds, logits } = await model.generate(fixture.prompt(prompt), 24);
            expect(tokenIds).to.deep.equal(fixture.greedy(mode, prompt).ids);
            if (fixture.hasTensor(`${mode}/greedy_logits/${prompt}`)) expectRows(fixture, mode, logits, `${mode}/greedy_logits/${prompt}`);
          });
        }

        if (mode === 'weight_only') {
          it('chooses the experts of the reference', async () => {
            await model.prefill(fixture.prompt('p33'));
            expectSameExperts(fixture, tap);
          });
        }
      });
    }
  });
}

describe('checkpoints that cannot run', () => {
  for (const fixture of fixtures.filter((candidate) => !supported.includes(candidate))) {
    it(`refuses ${basename(fixture.folder)} by the name of its architecture`, async () => {
      const failure: unknown = await RunningModel.open(fixture.folder, { device: 'typescript', numerics: 'auto' }).catch(
        (error: unknown) => error,
      );
      expect(isMoeError(failure)).to.equal(true);
      const { code, message } = failure as { code: string; message: string };
      expect(code).to.equal('MOE_UNSUPPORTED_ARCHITECTURE');
      for (const name of [fixture.architecture, ...supportedArchitectures]) expect(message).to.contain(name);
    });
  }
});

/** Nine tenths of the rows within p90, all within worst. */
function expectRows(fixture: Fixture, mode: Mode, logits: readonly Float32Array[], reference: string): void {
  const tolerance = fixture.tolerance(mode);
  const rows = fixture.rows(reference, logits[0]?.length ?? 0);
  const errors = logits.map((row, i) => relativeL2(row, rows[i] ?? [])).sort((a, b) => a - b);
  expect(errors).to.have.lengthOf(rows.length);
  expect(errors[Math.ceil(0.9 * errors.length) - 1]).to.be.at.most(tolerance.row_rel_l2_p90);
  expect(errors.at(-1)).to.be.at.most(tolerance.row_rel_l2_worst);
}

/** With the reference's tokens given, every step whose margin exceeds the tolerance must agree; see the fixtures' README. */
async function expectSureTokens(fixture: Fixture, mode: Mode, prompt: string, model: RunningModel): Promise<void> {
  const { ids, margins } = fixture.greedy(mode, prompt);
  const promptIds = fixture.prompt(prompt);
  const logits = await model.prefill(
    [...promptIds, ...ids.slice(0, -1)],
    ids.map((_, step) => promptIds.length - 1 + step),
  );
  const unsure = ids.filter(
    (id, step) => argmax(logits[step] ?? []) !== id && (margins[step] ?? 0) > fixture.tolerance(mode).logits_last_max_abs,
  );
  expect(unsure).to.deep.equal([]);
}

function argmax(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if ((values[i] ?? 0) > (values[best] ?? 0)) best = i;
  return best;
}

/** Compares sets, skipping tokens whose k-th and next router logits differ by less than 2 % of their spread. */
function expectSameExperts(fixture: Fixture, tap: RouterTap): void {
  let compared = 0;
  for (const [layer, { topkIds }] of tap.routed.entries()) {
    const numTokens = fixture.prompt('p33').length;
    const topK = topkIds.length / numTokens;
    const references = fixture.rows(`weight_only/p33/layer.${String(layer)}.router_ids`, topK);
    const routerLogits = fixture.tensor(`weight_only/p33/layer.${String(layer)}.router_logits`);
    const numExperts = routerLogits.length / numTokens;
    for (const [token, reference] of references.entries()) {
      const falling = [...routerLogits.subarray(token * numExperts, (token + 1) * numExperts)].sort((a, b) => b - a);
      const spread = (falling[0] ?? 0) - (falling.at(-1) ?? 0);
      if ((falling[topK - 1] ?? 0) - (falling[topK] ?? 0) < 0.02 * spread) continue;
      const chosen = [...topkIds.subarray(token * topK, (token + 1) * topK)].sort((a, b) => a - b);
      expect(chosen, `token ${String(token)} in layer ${String(layer)}`).to.deep.equal([...reference].sort((a, b) => a - b));
      compared++;
    }
  }
  expect(compared).to.be.greaterThan(30);
}

function maxDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let maximum = 0;
  for (let i = 0; i < b.length; i++) maximum = Math.max(maximum, Math.abs((a[i] ?? NaN) - (b[i] ?? NaN)));
  return maximum;
}
