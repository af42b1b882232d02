import { fork } from 'node:child_process';
import { expect } from 'chai';
import { nativeProblem } from './server-process.js';
import type { PhaseReport, SteadyStateReport } from './steady-state-process.js';

const stepsPerPhase = 5000;
const mib = 2 ** 20;

describe('the steady state of 10,000 steps of pocket-dictionary', function () {
  this.timeout(180_000);
  let report: SteadyStateReport;

  before(async function () {
    const problem = await nativeProblem();
    if (problem !== undefined) {
      console.log(`      skipped: ${problem}`);
      this.skip();
    }
    report = await measure();
  });

  const phases: Readonly<Record<string, (report: SteadyStateReport) => PhaseReport>> = {
    'one sequence after the other': ({ alone }) => alone,
    'sequences that come and go': ({ comingAndGoing }) => comingAndGoing,
  };
  for (const [title, phaseOf] of Object.entries(phases)) {
    it(`makes one native call a step, which allocates nothing, with ${title}`, () => {
      const { numSteps, numNativeSteps, numAllocations } = phaseOf(report);
      expect(report.numWatchedImports).to.be.greaterThan(0);
      expect(report.numCountedAtFirst).to.be.greaterThan(0);
      expect(numSteps).to.be.at.least(stepsPerPhase);
      expect(numNativeSteps).to.equal(numSteps);
      expect(numAllocations).to.equal(0);
    });

    it(`keeps the heap and the memory flat with ${title}`, () => {
      const { heapBytes, nativeBytes } = phaseOf(report);
      expect(heapBytes).to.be.below(mib / 4);
      // V8's own memory varies by up to 7 MiB, as much over 40,000 steps.
      expect(nativeBytes).to.be.below(12 * mib);
    });
  }

  it('starts a step at most 60 µs after the one before has ended, at the median', function () {
    // Other programs can only make it longer: the best window says what the engine takes.
    const medianUs = Math.min(...report.gaps.map((window) => window.medianUs));
    const otherProcessors = Math.min(...report.gaps.map((window) => window.otherProcessors));
    if (medianUs > 60 && otherProcessors > 0.1) {
      console.log(`      skipped: other programs used at least ${otherProcessors.toFixed(1)} processors all the time`);
      this.skip();
    }
    expect(medianUs).to.be.at.most(60);
  });
});

/** Runs the steps in a process of their own. */
async function measure(): Promise<SteadyStateReport> {
  const child = fork(new URL('./steady-state-process.js', import.meta.url), [String(stepsPerPhase)], {
    execArgv: ['--expose-gc'],
    // Counting how often code runs would be measured too.
    env: { ...process.env, NODE_V8_COVERAGE: '' },
    stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
  });
  let output = '';
  child.stderr?.on('data', (chunk: Buffer) => (output += chunk.toString()));
  return await new Promise((resolve, reject) => {
    child.once('message', (message) => {
      resolve(message as SteadyStateReport);
    });
    child.once('exit', (status) => {
      reject(new Error(`the steps ended with status ${String(status)}:\n${output}`));
    });
  });
}
