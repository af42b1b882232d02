import { pocketDictionary } from '@moe-server/test-kit';
import { expect } from 'chai';
import { continuations, evaluate } from './evaluation.js';
import { RunningModel } from './running-model.js';

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
      const { total, known } = await evaluate(model, arithmetic);
      model.close();
      expect(total).to.be.closeTo(1, tolerance);
      expect(known).to.be.closeTo(1, 0.1);
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
