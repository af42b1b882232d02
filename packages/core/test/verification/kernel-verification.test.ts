import { expect } from 'chai';
import type { ExpertWeights, LinearBackend, MoeBackend } from '../../src/backend.js';
import {
  createReferenceLinearBackend,
  createReferenceMoeBackend,
  expertGroup,
  expertWeightsOf,
  linearSpec,
  linearWeightsOf,
  Random,
  randomExperts,
  randomModules,
} from '../../src/conformance/index.js';
import { isMoeError, type MoeError } from '../../src/errors.js';
import { createHooks } from '../../src/hooks.js';
import type { ExpertGroupSpec } from '../../src/layer-spec.js';
import { plan } from '../../src/oracle/plan.js';
import type { LayerPlan, Quarantine } from '../../src/oracle/plan-types.js';
import { prepareExperts, prepareLinear, type PrepareHost } from '../../src/oracle/prepare.js';
import type { PreparedLayer } from '../../src/oracle/prepared-layer.js';
import type { SchemeKey } from '../../src/quant/quant-scheme.js';
import { silentLogger } from '../../src/tokens.js';
import { KernelVerification, quarantineOf } from '../../src/verification/kernel-verification.js';
import { verifiedInMemory, type VerifiedKernels } from '../../src/verification/verified-kernels.js';
import { registered, registeredLinear } from '../oracle/declared-backends.js';
import { afterwards, asNative, countingRunner, cpu, linearWithWrongColumn, outranking, withSwappedGateAndUp } from './wrong-kernels.js';

const maxNumTokens = 64;
const seed = 7;

function hostOf(moe: readonly MoeBackend[], linear: readonly LinearBackend[] = []): PrepareHost {
  return { moeBackends: registered(...moe), linearBackends: registeredLinear(...linear), hooks: createHooks(silentLogger) };
}

function planOf(
  host: PrepareHost,
  layer: Parameters<typeof plan>[0]['layers'][number],
  quarantined: readonly Quarantine[] = [],
): LayerPlan {
  const { moeBackends, linearBackends } = host;
  return plan({ layers: [layer], device: cpu, moeBackends, linearBackends, maxNumTokens, evidence: { quarantined } }).layers[0]!;
}

interface Setting {
  readonly verification: KernelVerification;
  readonly runner: ReturnType<typeof countingRunner>;
}

function setting(verified: VerifiedKernels = verifiedInMemory(), version = '1.0.0'): Setting {
  const runner = countingRunner();
  return { runner, verification: new KernelVerification({ runner, device: cpu, plugins: [{ name: 'test', version }], verified }) };
}

function groupOf(scheme: SchemeKey): ExpertGroupSpec {
  return expertGroup({ w13: scheme, hiddenSize: 128, moeIntermediateSize: 64, numExperts: 5, topK: 2 });
}

function weightsOf(group: ExpertGroupSpec): ExpertWeights {
  return expertWeightsOf(randomExperts(group, new Random(seed)));
}

async function refusalOf(preparing: Promise<PreparedLayer>): Promise<MoeError> {
  return preparing.then(
    () => expect.fail('the kernel was accepted'),
    (error: unknown) => {
      if (isMoeError(error)) return error;
      throw error;
    },
  );
}

describe('KernelVerification', () => {
  for (const scheme of ['nvfp4.w4a4', 'fp8.tensor.static', 'fp8.channel', 'fp8.block128', 'mxfp4.w4a16', 'bf16', 'f16'] as const) {
    it(`accepts right kernels on ${scheme}, experts and fused linears`, async () => {
      const host = hostOf([createReferenceMoeBackend()], [createReferenceLinearBackend()]);
      const { verification, runner } = setting();
      const context = { device: cpu, maxNumTokens, verification };
      const group = groupOf(scheme);
      await prepareExperts(host, planOf(host, group), group, weightsOf(group), context);
      const linear = linearSpec(scheme, 128, [192, 40, 16], true);
      await prepareLinear(host, planOf(host, linear), linear, linearWeightsOf(randomModules(linear, new Random(seed))), context);
      expect(runner.numCalls).to.equal(2);
    });
  }

  const wrongs: [what: string, backend: MoeBackend, message: RegExp][] = [
    [
      'has gate and up swapped',
      withSwappedGateAndUp('wrong'),
      /NMSE [1-9]\.\d+e[-+]\d \(allowed .*worst at token \d, column \d+: expected/,
    ],
    [
      'gives NaN',
      outranking('wrong', (kernel) => afterwards(kernel, (output) => output.fill(NaN, 3, 4))),
      /NMSE Infinity .* token 0, column 3: expected .*, got NaN\. It is not used/,
    ],
    [
      'fails',
      outranking('wrong', (kernel) =>
        afterwards(kernel, () => {
          throw new Error('illegal instruction');
        }),
      ),
      /fails on 3 tokens: illegal instruction\. It is not used/,
    ],
  ];
  for (const [what, backend, message] of wrongs) {
    it(`refuses a kernel that ${what}, with what it needs to plan again, and the next candidate takes the layer`, async () => {
      const host = hostOf([backend, createReferenceMoeBackend()]);
      const group = groupOf('nvfp4.w4a4');
      const { verification } = setting();
      const context = { device: cpu, maxNumTokens, verification };
      const first = planOf(host, group);
      expect(first.bindings[0]?.backend).to.equal('wrong');
      const error = await refusalOf(prepareExperts(host, first, group, weightsOf(group), context));
      expect(error.code).to.equal('MOE_DEVICE_KERNEL');
      expect(error.message)
        .to.match(new RegExp(`^wrong/${first.bindings[0]?.rule ?? ''} on model\\.layers\\.1\\.mlp\\.experts `))
        .and.to.match(message);
      const entries = [quarantineOf(error)!];
      // It has two rules, and both are wrong.
      const second = await refusalOf(prepareExperts(host, planOf(host, group, entries), group, weightsOf(group), context));
      entries.push(quarantineOf(second)!);
      await prepareExperts(host, planOf(host, group, entries), group, weightsOf(group), context);
      const last = planOf(host, group, entries);
      expect(last.bindings[0]?.backend).to.equal('reference');
      const reason = last.refused.find(({ backend: name }) => name === 'wrong')?.reasons[0];
      expect(reason?.dimension).to.equal('quarantined');
      expect(reason?.message).to.contain('it is quarantined: on model.layers.1.mlp.experts it');
    });
  }

  it('quarantines a kernel for layers like the one it failed on only', async () => {
    const host = hostOf([withSwappedGateAndUp('wrong'), createReferenceMoeBackend()]);
    const group = groupOf('bf16');
    const context = { device: cpu, maxNumTokens, verification: setting().verification };
    const entry = quarantineOf(await refusalOf(prepareExperts(host, planOf(host, group), group, weightsOf(group), context)))!;
    expect(planOf(host, { ...group, layerIndex: 9, name: 'model.layers.9.mlp.experts' }, [entry]).bindings[0]?.backend).to.equal(
      'reference',
    );
    expect(planOf(host, { ...group, moeIntermediateSize: 128 }, [entry]).bindings[0]?.backend).to.equal('wrong');
  });

  it('quarantines a backend that cannot make its kernel', async () => {
    const failing = outranking('wrong', (kernel) => kernel, { createKernel: () => Promise.reject(new Error('out of registers')) });
    const host = hostOf([failing, createReferenceMoeBackend()]);
    const group = groupOf('bf16');
    const error = await refusalOf(prepareExperts(host, planOf(host, group), group, weightsOf(group), { device: cpu, maxNumTokens }));
    expect(quarantineOf(error)).to.deep.include({ backend: 'wrong', rule: 'wide', kind: 'moe' });
    expect(quarantineOf(error)?.reason).to.match(/^it failed while making the kernel .*out of registers$/);
  });

  it('finds a wrong column at either end of a fused module, and names it', async () => {
    for (const column of [0, 191, 192, 231]) {
      const host = hostOf([], [linearWithWrongColumn('wrong', column, 5), createReferenceLinearBackend()]);
      const linear = linearSpec('fp8.block128', 128, [192, 40]);
      const weights = linearWeightsOf(randomModules(linear, new Random(seed)));
      const context = { device: cpu, maxNumTokens, verification: setting().verification };
      const error = await refusalOf(prepareLinear(host, planOf(host, linear), linear, weights, context));
      expect(error.message).to.contain(`worst at token 0, column ${column}: expected`);
    }
  });

  it('frees the kernel and the weights of what it refused', async () => {
    const freed: string[] = [];
    const right = createReferenceMoeBackend();
    const host = hostOf([
      withSwappedGateAndUp('wrong'),
      {
        ...right,
        pack: async (...args) => ({ ...(await right.pack(...args)), dispose: () => void freed.push('weights') }),
      },
    ]);
    const group = groupOf('bf16');
    const context = { device: cpu, maxNumTokens, verification: setting().verification };
    await refusalOf(prepareExperts(host, planOf(host, group), group, weightsOf(group), context));
    expect(freed).to.deep.equal(['weights']);
  });

  it('checks a class of layers once', async () => {
    const host = hostOf([createReferenceMoeBackend()]);
    const { verification, runner } = setting();
    for (const layerIndex of [0, 1, 2]) {
      const group = { ...groupOf('bf16'), layerIndex, name: `model.layers.${layerIndex}.mlp.experts` };
      await prepareExperts(host, planOf(host, group), group, weightsOf(group), { device: cpu, maxNumTokens, verification });
    }
    expect(runner.numCalls).to.equal(1);
  });

  describe('with kernels that were verified before', () => {
    const prepare = async (
      { verification }: Setting,
      change: (kernel: Parameters<typeof asNative>[0]) => ReturnType<typeof asNative> = asNative,
    ) => {
      const host = hostOf([outranking('native', change), createReferenceMoeBackend()]);
      const group = groupOf('bf16');
      await prepareExperts(host, planOf(host, group), group, weightsOf(group), { device: cpu, maxNumTokens, verification });
    };

    it('runs none of them again', async () => {
      const verified = verifiedInMemory();
      const [first, second] = [setting(verified), setting(verified)];
      await prepare(first);
      await prepare(second);
      expect([first.runner.numCalls, second.runner.numCalls]).to.deep.equal([1, 0]);
    });

    it('runs them again for another version of the plugin', async () => {
      const verified = verifiedInMemory();
      const [first, second] = [setting(verified, '1.0.0'), setting(verified, '1.0.1')];
      await prepare(first);
      await prepare(second);
      expect(second.runner.numCalls).to.equal(1);
    });

    it('refuses a plain function where the plugin had native code, because its weights were not sampled any more', async () => {
      const verified = verifiedInMemory();
      await prepare(setting(verified));
      const host = hostOf([outranking('native', (kernel) => kernel), createReferenceMoeBackend()]);
      const group = groupOf('bf16');
      const { verification, runner } = setting(verified);
      const error = await refusalOf(
        prepareExperts(host, planOf(host, group), group, weightsOf(group), { device: cpu, maxNumTokens, verification }),
      );
      expect(error.message).to.contain('its plugin changed without a new version');
      expect(runner.numCalls).to.equal(0);
    });

    it('runs plain functions every time, because nothing tells whether they changed', async () => {
      const verified = verifiedInMemory();
      const [first, second] = [setting(verified), setting(verified)];
      await prepare(first, (kernel) => kernel);
      await prepare(second, (kernel) => kernel);
      expect(second.runner.numCalls).to.equal(1);
    });
  });
});
