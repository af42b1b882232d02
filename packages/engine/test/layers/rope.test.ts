import { expect } from 'chai';
import { ropeFrequencies, ropeTable } from '../../src/layers/rope.js';
import type { RopeScaling } from '../../src/model-config.js';

const theta = 10_000;
const rotaryDim = 64;
const plain = ropeFrequencies(theta, rotaryDim, { type: 'default' });

describe('ropeFrequencies', () => {
  it('fall from 1 by a constant ratio', () => {
    expect(plain).to.have.lengthOf(32);
    expect(plain[0]).to.equal(1);
    expect(plain[16]).to.be.closeTo(0.01, 1e-8);
  });

  it('are all stretched by linear scaling', () => {
    const stretched = ropeFrequencies(theta, rotaryDim, { type: 'linear', factor: 4 });
    expect(stretched[0]).to.equal(0.25);
    expect(stretched[16]).to.be.closeTo(0.0025, 1e-9);
  });

  it('llama3 leaves short waves, stretches long ones and blends between', () => {
    const scaling: RopeScaling = { type: 'llama3', factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 8192 };
    const stretched = ropeFrequencies(500_000, 128, scaling);
    const unstretched = ropeFrequencies(500_000, 128, { type: 'default' });
    const ratios = [...stretched].map((frequency, i) => frequency / unstretched[i]!);
    expect(ratios[0]).to.equal(1);
    expect(ratios.at(-1)).to.equal(0.125);
    // Dimension 32 turns 8192 / (2 pi sqrt(500000)) = 1.84 times per context: a share of (1.84 - 1) / 3 stays unstretched.
    const share = (8192 / (2 * Math.PI * Math.sqrt(500_000)) - 1) / 3;
    expect(ratios[32]).to.be.closeTo((1 - share) / 8 + share, 1e-6);
  });

  it('yarn ramps from unstretched to stretched between beta_fast and beta_slow', () => {
    const scaling: RopeScaling = {
      type: 'yarn',
      factor: 4,
      originalMaxPositions: 4096,
      betaFast: 32,
      betaSlow: 1,
      truncate: true,
      attentionFactor: 1,
    };
    const stretched = ropeFrequencies(theta, rotaryDim, scaling);
    const ratios = [...stretched].map((frequency, i) => frequency / plain[i]!);
    // Bounds: floor(64 ln(4096 / 64 pi) / 2 ln 10000) = 10, ceil(64 ln(4096 / 2 pi) / 2 ln 10000) = 23.
    expect(ratios[10]).to.equal(1);
    expect(ratios[23]).to.equal(0.25);
    expect(ratios[15]).to.be.closeTo(1 - (5 / 13) * 0.75, 1e-6);
  });
});

describe('ropeTable', () => {
  it('holds cosines, then sines, of position times frequency', () => {
    const table = ropeTable({ theta, scaling: { type: 'default' } }, rotaryDim, 3);
    expect(table).to.have.lengthOf(3 * rotaryDim);
    expect([table[0], table[32]]).to.deep.equal([1, 0]);
    expect(table[2 * rotaryDim]).to.be.closeTo(Math.cos(2), 1e-7);
    expect(table[2 * rotaryDim + 32]).to.be.closeTo(Math.sin(2), 1e-7);
  });

  it('carries the attention factor of yarn', () => {
    const scaling: RopeScaling = {
      type: 'yarn',
      factor: 4,
      originalMaxPositions: 4096,
      betaFast: 32,
      betaSlow: 1,
      truncate: true,
      attentionFactor: 1.5,
    };
    expect(ropeTable({ theta, scaling }, rotaryDim, 1)[0]).to.equal(1.5);
  });
});
