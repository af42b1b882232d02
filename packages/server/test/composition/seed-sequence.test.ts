import { expect } from 'chai';
import { seedSequence } from '../../src/composition/seed-sequence.js';

describe('seedSequence', () => {
  it('is splitmix64', () => {
    // The first outputs for the seed 1234567, as published with the reference implementations.
    const next = seedSequence(1_234_567);
    expect([next(), next(), next()]).to.deep.equal([6457827717110365317n, 3203168211198807973n, 9817491932198370423n]);
  });
});
