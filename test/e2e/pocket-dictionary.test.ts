import { pocketDictionary } from '@moe-server/test-kit';
import { expect } from 'chai';
import { continuations, evaluate } from './evaluation.js';
import { RunningModel } from './running-model.js';

describe('pocket-dictionary on the cpu device', function () {
  this.timeout(300_000);

  for (const { numerics, arithmetic, tolerance, knownTolerance } of [
    { numerics: 'wider', arithmetic: 'weight_only', tolerance: 0.003, knownTolerance: 0.1 },
    { numerics: 'auto', arithmetic: 'weight_only', tolerance: 0.003, knownTolerance: 0.1 },
    // Rounding inputs to four bits multiplies differences of any size: the recording program itself (recipe/reference.py), with inputs disturbed by
    // one part in a million, scatters by 0.7 % on the known-word samples. The stages in backend-cpu's tests judge this arithmetic tightly.
    // Four of the twenty known-word answers make most of their sum: with the epsilon of the norms disturbed by millionths, sixteen runs gave 0.65 to
    // 0.97 of it here, and 0.96 to 1.01 in the arithmetics above.
    { numerics: 'same', arithmetic: 'weight_and_activation', tolerance: 0.01, knownTolerance: 0.5 },
  ] as const) {
    it(`has the recorded likelihoods with ${numerics} arithmetic`, async () => {
      const model = await RunningModel.open(pocketDictionary, { device: 'cpu', numerics });
      const { total, known } = await evaluate(model, arithmetic);
      model.close();
      expect(total).to.be.closeTo(1, tolerance);
      expect(known).to.be.closeTo(1, knownTolerance);
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
