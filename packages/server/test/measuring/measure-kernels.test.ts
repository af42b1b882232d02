import { fileURLToPath } from 'node:url';
import type { MeasuredClass } from '@moe-server/core';
import { fixtureFolder } from '@moe-server/test-kit';
import { expect } from 'chai';
import { measureKernels } from '../../src/measuring/measure-kernels.js';
import type { KernelTimes } from '../../src/measuring/measure-kernels.js';
import type { ClassToMeasure, ClassWork } from '../../src/measuring/protocol.js';

const model = fixtureFolder('mixtral-bf16') ?? '';
const selection = { type: 'choices' } as const;
const settings = { model, selection, device: 'reference', plugins: false, maxNumBatchedTokens: 2, budgetMs: 50, callLimitMs: 700 } as const;

describe('measureKernels', function () {
  this.timeout(30_000);
  let calibration: KernelTimes;
  const told: string[] = [];
  let numBegun = 0;
  const progress: number[] = [];

  before(async () => {
    const plugin = [fileURLToPath(new URL('./wild-plugin.js', import.meta.url))];
    calibration = await measureKernels(
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
    const error = await measureKernels({ ...settings, model: '/nowhere' }).catch((thrown: unknown) => thrown);
    expect(error).to.have.property('code', 'MOE_CHECKPOINT_NOT_FOUND');
  });

  it('does not blame a kernel for a process that dies before one runs', async () => {
    const error = await measureKernels(settings, {}, new URL('./dying-process.js', import.meta.url)).catch((thrown: unknown) => thrown);
    expect(error).to.have.property('code', 'MOE_DEVICE_LOST');
  });
});

describe('measureKernels for a bench', function () {
  this.timeout(30_000);
  const shape = { hiddenSize: 64, moeIntermediateSize: 32, numExperts: 12, topK: 2 };
  const ofShape = { ...settings, model: shape, maxNumBatchedTokens: 3 };

  it('times every usable rule at the given sizes on random weights of a shape, and says what calls had to do', async () => {
    const classes: ClassToMeasure[] = [];
    const found = new Map<string, { readonly measured: MeasuredClass; readonly work: ClassWork }>();
    await measureKernels(
      { ...ofShape, selection: { type: 'all', sizes: [1, 3], backends: [], schemes: ['nvfp4.w4a4', 'bf16'] } },
      {
        onBegin: (begun) => classes.push(...begun.classes),
        onMeasured: (measured, work) => found.set(measured.layerClass, { measured, work }),
      },
    );
    expect(classes.map(({ spec }) => spec.name)).to.deep.equal([
      'experts in nvfp4.w4a4',
      'experts in bf16',
      'linear in nvfp4.w4a4',
      'linear in bf16',
    ]);
    for (const { layerClass, spec, rules } of classes) {
      const { measured, work } = found.get(layerClass)!;
      expect(measured.times.map(({ numTokens }) => numTokens)).to.deep.equal(rules.flatMap(() => [1, 3]));
      expect(work.weights.map(({ rule }) => rule).sort()).to.deep.equal(rules.map(({ rule }) => rule).sort());
      for (const { bytes } of work.weights) expect(bytes).to.be.greaterThan(0);
      if (spec.kind === 'linear') expect(work.calls).to.deep.equal([]);
      else expect(work.calls.map(({ numTokens, numChoices }) => [numTokens, numChoices])).to.deep.equal([1, 3].map((n) => [n, 2 * n]));
      for (const { numTokens, numExperts } of work.calls) expect(numExperts).to.be.within(2, 2 * numTokens);
    }
  });

  it('keeps to the backends that are named', async () => {
    const plugin = [fileURLToPath(new URL('./wild-plugin.js', import.meta.url))];
    const names = new Set<string>();
    const selection = { type: 'all', sizes: [1], backends: ['wild'], schemes: [] } as const;
    const { quarantined } = await measureKernels(
      { ...ofShape, plugin, selection },
      {
        onBegin: ({ classes }) => {
          for (const { backend } of classes.flatMap(({ rules }) => rules)) names.add(backend);
        },
      },
    );
    expect([...names]).to.deep.equal(['wild']);
    expect(quarantined[0]?.reason).to.match(/^It .* when "moe-server bench" tried it on linear in bf16 /);
  });

  for (const [what, names] of [
    ['backend', { backends: ['nobody'] }],
    ['scheme', { schemes: ['nothing'] }],
  ] as const) {
    it(`refuses a ${what} that nobody has, naming those there are`, async () => {
      const selection = { type: 'all', sizes: [1], backends: [], schemes: [], ...names } as const;
      const error = await measureKernels({ ...ofShape, selection }).catch((thrown: unknown) => thrown);
      expect(error).to.have.property('code', 'MOE_USAGE');
      expect(error)
        .to.have.property('message')
        .that.matches(what === 'backend' ? /there are reference\.$/ : /there are .*bf16/);
    });
  }
});
