import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pocketDictionary } from '@moe-server/test-kit';
import { expect } from 'chai';
import { RunningModel } from './running-model.js';

interface Sample {
  readonly id: number;
  readonly kind: string;
  readonly ids: readonly number[];
  readonly target: readonly (0 | 1)[];
}

interface Likelihood {
  readonly nll: number;
  readonly target_nll: number;
}

interface Greedy {
  readonly prompt: string;
  readonly prompt_ids: readonly number[];
  readonly weight_only: { readonly ids: readonly number[]; readonly ended: boolean };
}

function evaluationFile(name: string): string {
  return readFileSync(join(pocketDictionary, 'eval', name), 'utf8');
}

const samples = evaluationFile('heldout.jsonl')
  .trim()
  .split('\n')
  .map((line) => JSON.parse(line) as Sample);
const reference = JSON.parse(evaluationFile('reference_nll.json')) as readonly Record<
  'weight_only' | 'weight_and_activation',
  Likelihood
>[];
const continuations = JSON.parse(evaluationFile('greedy.json')) as readonly Greedy[];
const knownWord = 'known-word-new-question';

describe('pocket-dictionary on the cpu device', function () {
  this.timeout(300_000);

  for (const { numerics, arithmetic, tolerance } of [
    { numerics: 'wider', arithmetic: 'weight_only', tolerance: 0.003 },
    { numerics: 'auto', arithmetic: 'weight_only', tolerance: 0.003 },
    // Rounding inputs to four bits multiplies differences of any size: the recording program itself (recipe/reference.py), with inputs disturbed by
    // one part in a million, scatters by 0.7 % on the known-word samples. The stages in backend-cpu's tests judge this arithmetic tightly.
    { numerics: 'same', arithmetic: 'weight_and_activation', tolerance: 0.01 },
  ] as const) {
    it(`has the recorded likelihoods with ${numerics} arithmetic`, async () => {
      const model = await RunningModel.open(pocketDictionary, { device: 'cpu', numerics });
      const total = { actual: 0, expected: 0 };
      const known = { actual: 0, expected: 0 };
      for (const [i, { ids, kind, target }] of samples.entries()) {
        const logprobs = await model.score(ids);
        const expected = reference[i]?.[arithmetic] ?? { nll: NaN, target_nll: NaN };
        total.actual -= sum(logprobs);
        total.expected += expected.nll;
        if (kind !== knownWord) continue;
        known.actual -= sum(logprobs.filter((_, position) => target[position + 1] === 1));
        known.expected += expected.target_nll;
      }
      model.close();
      expect(total.actual / total.expected).to.be.closeTo(1, tolerance);
      expect(known.actual / known.expected).to.be.closeTo(1, 0.1);
    });
  }

  it('continues the recorded prompts token for token', async () => {
    const model = await RunningModel.open(pocketDictionary, { device: 'cpu', numerics: 'wider' });
    for (const { prompt, prompt_ids: promptIds, weight_only: expected } of continuations) {
      // Recorded without the end token.
      const maxTokens = expected.ids.length + (expected.ended ? 1 : 0);
      const { tokenIds } = await model.generate(promptIds, maxTokens, model.config.eosTokenIds);
      expect(tokenIds.slice(0, expected.ids.length), prompt).to.deep.equal(expected.ids);
      if (expected.ended) expect(model.config.eosTokenIds, prompt).to.include(tokenIds.at(-1));
    }
    model.close();
  });
});

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
