import { expect } from 'chai';
import type { CpuRates } from '@moe-server/engine';
import type { Figure, Summary } from '../src/figures.js';
import { markdownOf } from '../src/markdown.js';
import type { Measurement } from '../src/markdown.js';
import { ratiosOf, TextReport } from '../src/report.js';
import type { Sides } from '../src/report.js';

const rates: CpuRates = { numThreads: 2, bandwidth: 30, dots: { int8: 900, bf16: undefined, f32: 200 } };
const speed = (median: number): Summary => ({ median, min: median - 1, max: median + 1 });
const sides: Sides = { ours: ['moe-server auto', 'moe-server same'], peers: ['S', 'S-q4_0'] };

const decode: Figure = {
  workload: { type: 'decode', contextLength: 128, numTokens: 48, numSequences: 4 },
  results: [
    {
      name: 'moe-server auto',
      tokensPerSecond: speed(150),
      floor: { bound: 'memory', bytesPerStep: 6e8, expertsPerStep: 300.5, tokensPerSecond: 200 },
      numDropped: 2,
    },
    { name: 'moe-server same', tokensPerSecond: speed(120), floor: undefined, numDropped: 0 },
    { name: 'S', tokensPerSecond: speed(50), floor: undefined, numDropped: 0 },
    { name: 'S-q4_0', tokensPerSecond: speed(60), floor: undefined, numDropped: 0 },
  ],
  rates: [rates, { ...rates, bandwidth: 31 }],
  foreign: 0.01,
};

const prefill: Figure = {
  ...decode,
  workload: { type: 'prefill', numTokens: 512 },
  results: [
    {
      name: 'moe-server auto',
      tokensPerSecond: speed(1500),
      floor: { bound: 'products', operations: { int8: 5.12e11, bf16: 5.12e10, f32: 0 }, tokensPerSecond: 3000 },
      numDropped: 0,
    },
    ...decode.results.slice(1),
  ],
};

describe('the report of the bench', () => {
  it('compares each class of numerics with every peer and with the fastest', () => {
    expect(ratiosOf(decode, 'moe-server same', sides)).to.deep.equal({
      byPeer: { S: 2.4, 'S-q4_0': 2 },
      toFastest: { name: 'S-q4_0', ratio: 2 },
    });
    expect(ratiosOf(decode, 'moe-server auto', { ...sides, peers: [] }).toFastest).to.equal(undefined);
  });

  it('says what was reached of the floor, and what the floor was made from', () => {
    const lines = new TextReport(sides).figure(decode);
    expect(lines[0]).to.match(/^decode at 128, 4 sequences +moe-server auto +150 +75 % +149–151, 2 disturbed$/);
    expect(lines.join('\n')).to.contain('moe-server auto: 3.00 times S, 2.50 times S-q4_0 (the fastest)');
    expect(lines.at(-1)).to.equal('    600.0 MB a step, 300.5 experts in it, over 30.0 and 31.0 GB/s (before, after) = 200 tokens/s');
  });

  it('takes the rate of float32 where there are no narrower products', () => {
    expect(new TextReport(sides).figure(prefill).at(-1)).to.equal(
      '    a token: 1.000 Gop int8 over 900 and 900 Gop/s, 0.100 Gop bf16 over 200 and 200 Gop/s (before, after) = 3000 tokens/s',
    );
  });

  it('mentions other programs only where they did something', () => {
    expect(new TextReport(sides).figure(decode).join('\n')).not.to.contain('other programs');
    expect(new TextReport(sides).figure({ ...decode, foreign: 0.5 }).join('\n')).to.contain('other programs used 0.50 processors');
  });

  it('writes a section of a document', () => {
    const measurement: Measurement = {
      machine: {
        processor: 'A processor',
        processors: 2,
        memoryGiB: 24,
        kernel: '6',
        node: 'v20',
        commit: 'abc',
        date: '2026-01-02T03:04:05Z',
      },
      rates: [rates],
      model: { name: 'S', weightBytes: 7e8 },
      numThreads: 2,
      numRuns: 3,
      contestants: [{ name: 'S', facts: { engine: 'llama.cpp', loadSeconds: 1, details: ['llama.cpp 1'] }, peakBytes: 2e9 }],
      figures: [prefill, decode],
    };
    const lines = markdownOf(measurement, sides).split('\n');
    expect(lines).to.include('- S: llama.cpp 1, loaded in 1.0 s, at most 2000 MB');
    expect(lines).to.include('| prefill 512 | 1500 (50 %) | 120 | 50.0 | 60.0 |');
    expect(lines).to.include('| decode at 128, 4 sequences | 3.00 | 2.50 | 2.50 | 2.40 | 2.00 | 2.00 |');
  });
});
