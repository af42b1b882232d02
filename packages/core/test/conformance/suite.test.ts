import { expect } from 'chai';
import type { ExpertsArgs, Kernel, LinearBackend, MoeBackend } from '../../src/backend.js';
import { describeLinearBackend, describeMoeBackend } from '../../src/conformance/index.js';
import type { ConformanceOptions } from '../../src/conformance/index.js';
import type { CpuDeviceInfo } from '../../src/device-info.js';
import { collectResults } from './collect-results.js';
import type { CollectedResults } from './collect-results.js';
import { narrowLinear, narrowMoe, packingOther, wrongLinearBackends, wrongMoeBackends } from './wrong-backends.js';

const device: CpuDeviceInfo = { type: 'cpu', name: 'any CPU', architecture: 'other', features: [], numThreads: 1, memoryBytes: undefined };

const judgeMoe = (backend: MoeBackend, options: Partial<ConformanceOptions> = {}): Promise<CollectedResults> =>
  collectResults((runner) => {
    describeMoeBackend({ name: 'judged', create: () => backend, device, runner, ...options });
  });
const judgeLinear = (backend: LinearBackend, options: Partial<ConformanceOptions> = {}): Promise<CollectedResults> =>
  collectResults((runner) => {
    describeLinearBackend({ name: 'judged', create: () => backend, device, runner, ...options });
  });

describe('describeMoeBackend', () => {
  for (const { fault, make, seenBy } of wrongMoeBackends) {
    it(`fails a backend that ${fault}`, async () => {
      const { failed } = await judgeMoe(make());
      for (const title of seenBy) {
        const match = failed.find((failure) => failure.title.includes(title));
        expect(match, `"${title}" saw nothing; failed: ${failed.map((failure) => failure.title).join('; ')}`).not.to.equal(undefined);
        expect(match?.message).to.match(/bf16|nvfp4|mxfp4/);
      }
    });
  }

  it('passes the reference backend, and says which cases do not apply', async () => {
    const [rule] = narrowMoe({ schemes: ['fp8.channel', 'bf16'] }).rules;
    const { failed, passed, skipped } = await judgeMoe({
      ...narrowMoe({ schemes: [] }),
      rules: rule === undefined ? [] : [{ ...rule, batchInvariant: false }],
    });
    expect(failed).to.deep.equal([]);
    expect(passed.length).to.be.greaterThan(40);
    expect(skipped.filter((title) => title.includes('the rule does not claim it'))).to.have.length(2);
  });

  it('names seed, rule, sizes and figures in a failure', async () => {
    const wrong = packingOther(narrowMoe({ schemes: ['bf16'] }), (expert) => ({ ...expert, gate: expert.up }));
    const { failed } = await judgeMoe(wrong, { seed: 77 });
    expect(failed[0]?.message).to.match(
      /reference\/wide, bf16, hidden 160, inner 144, seed 77, 1 tokens: NMSE \d.*allowed.*row \d+, column \d+/,
    );
  });

  it('skips what it is told to, with the reason in the title', async () => {
    const skip = [{ case: 'one-token', reason: 'prefill kernels only until the decode kernel lands' }];
    const { failed, skipped } = await judgeMoe(narrowMoe({ schemes: ['bf16'] }), { skip });
    expect(failed).to.deep.equal([]);
    expect(skipped.filter((title) => title.includes('computes one token (skipped: prefill kernels only'))).to.have.length(1);
  });

  it('fails a skip without a reason, and one of a case or rule that does not exist', async () => {
    const skip = [
      { case: 'one-token', reason: ' ' },
      { case: 'no-such-case', reason: 'a reason that is long enough' },
      { case: 'one-token', rule: 'no-such-rule', reason: 'a reason that is long enough' },
    ];
    const { failed } = await judgeMoe(narrowMoe({ schemes: ['bf16'] }), { skip });
    expect(failed.map(({ message }) => message.slice(0, 35))).to.deep.equal([
      'The skip of "one-token" needs a rea',
      'There is no case "no-such-case" to ',
      'There is no rule "no-such-rule" to ',
    ]);
  });

  it('shows rules for other devices and kernels that are not built as skipped, and fails when nothing is left', async () => {
    const backend = narrowMoe({ schemes: ['bf16'] });
    const [rule] = backend.rules;
    if (rule === undefined) throw new Error('the reference backend has a rule "wide"');
    const gpu = { ...rule, id: 'gpu', device: { type: 'cuda', sm: [120] } as const };
    const both = await judgeMoe({ ...backend, rules: [rule, gpu] });
    expect(both.failed).to.deep.equal([]);
    expect(both.skipped.some((title) => title.includes('rule gpu') && title.includes('CUDA'))).to.equal(true);
    const only = await judgeMoe({ ...backend, rules: [gpu] });
    expect(only.failed.map(({ message }) => message)).to.deep.equal([
      'No rule covers the device at hand, any CPU: there is nothing to judge.',
    ]);
    const unbuilt = await judgeMoe({ ...backend, missing: () => 'the addon is not built for this platform' });
    expect(unbuilt.skipped.some((title) => title.includes('the addon is not built for this platform'))).to.equal(true);
  });

  it('runs native kernels through what it is given, and asks for it where it is not', async () => {
    const backend = narrowMoe({ schemes: ['bf16'] });
    const entries = new Map<unknown, Kernel>();
    const native: MoeBackend = {
      ...backend,
      createKernel: async (...args) => {
        const kernel = await backend.createKernel(...args);
        const external = {};
        entries.set(external, kernel);
        return { ...kernel, entry: { type: 'native', external } };
      },
    };
    const runExperts = (kernel: Kernel, args: ExpertsArgs): void => {
      const inner = kernel.entry.type === 'native' ? entries.get(kernel.entry.external) : undefined;
      if (inner?.entry.type === 'js-experts') inner.entry.run(args);
    };
    expect((await judgeMoe(native, { runExperts })).failed).to.deep.equal([]);
    const { failed } = await judgeMoe(native);
    expect(failed[0]?.message).to.include('"runExperts"');
  });
});

describe('describeLinearBackend', () => {
  for (const { fault, make, seenBy } of wrongLinearBackends) {
    it(`fails a backend that ${fault}`, async () => {
      const { failed } = await judgeLinear(make());
      for (const title of seenBy) {
        expect(
          failed.some((failure) => failure.title.includes(title)),
          `"${title}" saw nothing; failed: ${failed.map((failure) => failure.title).join('; ')}`,
        ).to.equal(true);
      }
    });
  }

  it('judges an own per-tensor quantization by the reference of that quantization', async () => {
    const backend = narrowLinear({ schemes: ['fp8.channel'] });
    const input = { type: 'own', quantization: { type: 'fp8', granularity: 'tensor', scale: 'dynamic' } } as const;
    const rules = backend.rules.map((rule) => ({ ...rule, batchInvariant: false, arithmetic: { ...rule.arithmetic, input } }));
    const { failed, skipped } = await judgeLinear({ ...backend, rules });
    expect(failed).to.deep.equal([]);
    expect(skipped.some((title) => title.includes('one scale for the whole tensor joins its rows'))).to.equal(true);
  });
});
