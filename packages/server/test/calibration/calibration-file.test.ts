import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { expect } from 'chai';
import { calibrationFile, readEvidence, writeResults } from '../../src/calibration/calibration-file.js';
import type { CalibrationResults } from '../../src/calibration/calibration-file.js';
import { fingerprintOf } from '../../src/calibration/environment.js';
import type { CalibrationEnvironment } from '../../src/calibration/environment.js';

const environment: CalibrationEnvironment = {
  device: { type: 'cpu', name: 'a processor', numThreads: 2 },
  plugins: [{ name: 'cpu', version: '0.1.0', source: 'somewhere' }],
  addons: { '@moe-server/backend-cpu': 'abc' },
  contractVersion: 1,
};

function resultsFor(layerClass: string, medianUs: number): CalibrationResults {
  const times = [{ backend: 'cpu', rule: 'r', numTokens: 1, medianUs, spreadUs: 0.5 }];
  const quarantined = [{ backend: 'cpu', rule: 'bad', kind: 'moe', layerClass, reason: 'It crashed' }] as const;
  return { classes: [{ layerClass, measuredAt: '2026-01-02T03:04:05.000Z', times }], quarantined };
}

describe('calibration cache', () => {
  let directory: string;
  const warnings: string[] = [];
  const log = { warn: (_fields: unknown, message: string) => void warnings.push(message) };

  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'moe-calibration-'));
    warnings.length = 0;
  });
  afterEach(() => {
    rmSync(directory, { recursive: true });
  });

  it('gives back what was kept, as evidence of this environment', async () => {
    const results = resultsFor('a', 5);
    await writeResults(directory, environment, results, log);
    expect(await readEvidence(directory, environment, log)).to.deep.equal({
      quarantined: results.quarantined,
      measured: { environment: fingerprintOf(environment), classes: results.classes },
    });
    expect(warnings).to.deep.equal([]);
  });

  it('knows nothing of another environment: other threads, another build of an addon, another version of a plugin', async () => {
    await writeResults(directory, environment, resultsFor('a', 5), log);
    const others: CalibrationEnvironment[] = [
      { ...environment, device: { ...environment.device, numThreads: 4 } },
      { ...environment, addons: { '@moe-server/backend-cpu': 'abd' } },
      { ...environment, plugins: [{ name: 'cpu', version: '0.1.1', source: 'somewhere' }] },
    ];
    for (const other of others) expect(await readEvidence(directory, other, log)).to.equal(undefined);
    expect(warnings).to.deep.equal([]);
  });

  it('renews the classes that were measured again and keeps the others', async () => {
    await writeResults(directory, environment, resultsFor('a', 5), log);
    await writeResults(directory, environment, resultsFor('b', 6), log);
    await writeResults(directory, environment, { ...resultsFor('a', 7), quarantined: [] }, log);
    const evidence = await readEvidence(directory, environment, log);
    expect(evidence?.measured?.classes.map(({ layerClass, times }) => [layerClass, times[0]?.medianUs])).to.deep.equal([
      ['b', 6],
      ['a', 7],
    ]);
    expect(evidence?.quarantined?.map(({ layerClass }) => layerClass)).to.deep.equal(['b']);
  });

  it('ignores a damaged file with one warning, and replaces it', async () => {
    await writeResults(directory, environment, resultsFor('a', 5), log);
    const file = calibrationFile(directory, environment);
    const whole = readFileSync(file, 'utf8');
    const damaged = [
      whole.slice(0, -20),
      '',
      '[]',
      whole.replace('"version": 1', '"version": 2'),
      whole.replace('"medianUs": 5', '"medianUs": -5'),
    ];
    for (const text of damaged) {
      writeFileSync(file, text);
      warnings.length = 0;
      expect(await readEvidence(directory, environment, log)).to.equal(undefined);
      expect(warnings).to.have.length(1);
      expect(warnings[0]).to.contain(file);
    }
    await writeResults(directory, environment, resultsFor('a', 9), log);
    expect((await readEvidence(directory, environment, log))?.measured?.classes[0]?.times[0]?.medianUs).to.equal(9);
  });

  it('leaves no drafts behind', async () => {
    await writeResults(directory, environment, resultsFor('a', 5), log);
    expect(readdirSync(dirname(calibrationFile(directory, environment)))).to.deep.equal([`${fingerprintOf(environment)}.json`]);
  });
});
