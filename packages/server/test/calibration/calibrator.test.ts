import { fileURLToPath } from 'node:url';
import { fixtureFolder } from '@moe-server/test-kit';
import { expect } from 'chai';
import { runCalibration } from '../../src/calibration/calibrator.js';
import type { Calibration } from '../../src/calibration/calibrator.js';

const model = fixtureFolder('mixtral-bf16') ?? '';
const settings = { model, device: 'reference', plugins: false, maxNumBatchedTokens: 2, budgetMs: 50, callLimitMs: 700 } as const;

describe('runCalibration', function () {
  this.timeout(30_000);
  let calibration: Calibration;
  const told: string[] = [];
  let numBegun = 0;
  const progress: number[] = [];

  before(async () => {
    const plugin = [fileURLToPath(new URL('./wild-plugin.js', import.meta.url))];
    calibration = await runCalibration(
      { ...settings, plugin },
      {
        onBegin: () => numBegun++,
        onProgress: (numDone, numMeasurements) => progress.push(numDone / numMeasurements),
        onFailed: ({ rule }) => told.push(rule),
      },
    );
  });

  it('gives a reason for a kernel that kills its process, one that hangs and one that throws, for every class of layers', () => {
    const { quarantined, classes } = calibration;
    const layerClasses = classes.map(({ layerClass }) => layerClass).sort();
    for (const [rule, reason] of [
      ['crash', /^It killed its process \(SIGKILL\) when .* tried it on .* with 1 tokens \(20/],
      ['hang', /^It did not answer for 0\.7 s and was killed when /],
      ['throw', /^It failed when .*no more registers/],
    ] as const) {
      const entries = quarantined.filter((entry) => entry.rule === rule);
      expect(entries.map(({ layerClass }) => layerClass).sort()).to.deep.equal(layerClasses);
      for (const entry of entries) expect(entry.reason).to.match(reason);
    }
    expect([...new Set(told)].sort()).to.deep.equal(['crash', 'hang', 'throw']);
  });

  it('times what is left at every size', () => {
    for (const { times } of calibration.classes) {
      expect([...new Set(times.map(({ backend }) => backend))].sort()).to.deep.equal(['reference', 'wild']);
      expect(times.filter(({ rule }) => rule === 'good').map(({ numTokens }) => numTokens)).to.deep.equal([1, 2]);
      for (const { medianUs } of times) expect(medianUs).to.be.greaterThan(0);
    }
  });

  it('tells of its begin once, and of progress to the end', () => {
    expect(numBegun).to.equal(1);
    expect(progress.at(-1)).to.equal(1);
    expect([...progress].sort((a, b) => a - b)).to.deep.equal(progress);
  });

  it('names plugins and device in its environment', () => {
    expect(calibration.environment.plugins.map(({ name }) => name)).to.include('wild');
    expect(calibration.environment.device).to.have.property('numThreads');
  });

  it('passes on what keeps it from measuring', async () => {
    const error = await runCalibration({ ...settings, model: '/nowhere' }).catch((thrown: unknown) => thrown);
    expect(error).to.have.property('code', 'MOE_CHECKPOINT_NOT_FOUND');
  });

  it('does not blame a kernel for a process that dies before one runs', async () => {
    const error = await runCalibration(settings, {}, new URL('./dying-process.js', import.meta.url)).catch((thrown: unknown) => thrown);
    expect(error).to.have.property('code', 'MOE_DEVICE_LOST');
  });
});
