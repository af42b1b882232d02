import { expect } from 'chai';
import { pocketDictionary } from '@moe-server/test-kit';
import { modelBytesOf, stepBytes } from '../src/model-bytes.js';
import { operationsOf } from '../src/prompt-operations.js';

describe('what the floor is made from', () => {
  it('reads every weight but the embedding once, the chosen experts, and the keys and values of every sequence', async () => {
    const bytes = await modelBytesOf(pocketDictionary);
    const { weightBytes, denseBytes, expertBytes, numExperts, kvPerPosition } = bytes;
    expect(denseBytes + numExperts * expertBytes).to.be.at.most(weightBytes);
    const one = stepBytes(bytes, { numSequences: 1, contextLength: 100, numExperts: bytes.expertsPerToken });
    expect(one).to.equal(denseBytes + bytes.expertsPerToken * expertBytes + 100 * kvPerPosition);
    const four = stepBytes(bytes, { numSequences: 4, contextLength: 100, numExperts: 2 * bytes.expertsPerToken });
    expect(four - one).to.be.closeTo(bytes.expertsPerToken * expertBytes + 300 * kvPerPosition, 1);
  });

  it('counts causal attention, and the logits of the last token only', () => {
    const perToken = { int8: 10, bf16: 20, f32: 30 };
    const once = { int8: 0, bf16: 0, f32: 7 };
    const perPair = { dots: 'bf16', operations: 100 } as const;
    expect(operationsOf({ perToken, once, perPair }, 3)).to.deep.equal({ int8: 30, bf16: 60 + 600, f32: 90 + 7 });
  });
});
