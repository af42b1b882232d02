import { expect } from 'chai';
import type { ExpertMatrices, ExpertWeights, MoeBackend } from '../../src/backend.js';
import { isMoeError, MoeError } from '../../src/errors.js';
import { createHooks } from '../../src/hooks.js';
import { plan } from '../../src/oracle/plan.js';
import type { LayerPlan } from '../../src/oracle/plan-types.js';
import { prepareExperts, prepareLinear, type PrepareHost } from '../../src/oracle/prepare.js';
import type { LinearBackend } from '../../src/backend.js';
import { SCHEME, type Bf16Weights, type SchemeKey } from '../../src/quant/quant-scheme.js';
import { silentLogger } from '../../src/tokens.js';
import {
  expertGroup,
  expertRule,
  gb10,
  linear,
  linearBackend,
  linearRule,
  moeBackend,
  registered,
  registeredLinear,
  type Journal,
} from './declared-backends.js';

const context = { device: gb10, maxNumTokens: 1024 };

/** Experts whose matrices carry `brand`, whatever is inside. */
function branded(numExperts: number, brand: string, downBrand = brand): ExpertWeights {
  const matrix = (scheme: string) => ({ [SCHEME]: scheme, rows: 1, columns: 1, values: new Uint16Array(1) }) as unknown as Bf16Weights;
  return {
    numExperts,
    expert: () => Promise.resolve({ gate: matrix(brand), up: matrix(brand), down: matrix(downBrand) } as ExpertMatrices),
  };
}

function hostOf<S extends SchemeKey>(...backends: readonly MoeBackend<S>[]): PrepareHost {
  return { moeBackends: registered(...backends), linearBackends: [], hooks: createHooks(silentLogger) };
}

function planFor(host: PrepareHost, group = expertGroup(0, 'nvfp4.w4a4')): LayerPlan {
  const [layer] = plan({ layers: [group], device: gb10, moeBackends: host.moeBackends, linearBackends: [], maxNumTokens: 1024 }).layers;
  if (layer === undefined) throw new Error('no layer');
  return layer;
}

async function errorOf(promise: Promise<unknown>): Promise<MoeError> {
  try {
    await promise;
  } catch (error) {
    if (isMoeError(error)) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

describe('prepareExperts', () => {
  const group = expertGroup(0, 'nvfp4.w4a4');
  const rule = expertRule('w4a4', ['nvfp4.w4a4']);

  it('packs, makes the kernel, tells the hook, and disposes both once', async () => {
    const journal: Journal = { events: [] };
    const host = hostOf(moeBackend('b12x', 1, [rule], {}, journal));
    host.hooks.layerPrepared.tap('test', ({ name }, residentBytes) => journal.events.push(`prepared ${name} ${residentBytes}`));
    const prepared = await prepareExperts(host, planFor(host), group, branded(8, 'nvfp4.w4a4'), context);
    expect(prepared.binding).to.include({ backend: 'b12x', rule: 'w4a4' });
    expect(prepared.kernel.entry.type).to.equal('js-experts');
    prepared.dispose();
    prepared.dispose();
    expect(journal.events).to.deep.equal([
      'pack b12x/w4a4',
      'kernel b12x/w4a4 1024',
      'prepared model.layers.0.mlp.experts 1000',
      'free kernel b12x/w4a4',
      'free pack of b12x',
    ]);
  });

  it('frees the weights after the kernel when both are disposed one by one, in either order', async () => {
    const journal: Journal = { events: [] };
    const host = hostOf(moeBackend('b12x', 1, [rule], {}, journal));
    const { kernel, packed } = await prepareExperts(host, planFor(host), group, branded(8, 'nvfp4.w4a4'), context);
    packed.dispose();
    kernel.dispose();
    expect(journal.events.slice(2)).to.deep.equal(['free kernel b12x/w4a4', 'free pack of b12x']);
  });

  it('packs once for kernels of one layout, each told the calls of its interval', async () => {
    const journal: Journal = { events: [] };
    const rules = [
      expertRule('decode', ['nvfp4.w4a4'], { tokens: { max: 64 } }),
      expertRule('prefill', ['nvfp4.w4a4'], { tokens: { min: 65 } }),
    ];
    const host = hostOf(moeBackend('a', 1, rules, {}, journal));
    const prepared = await prepareExperts(host, planFor(host), group, branded(8, 'nvfp4.w4a4'), context);
    expect(prepared.bindings.map(({ binding }) => binding.rule)).to.deep.equal(['decode', 'prefill']);
    expect(prepared.residentBytes).to.equal(1000);
    expect(() => prepared.kernel).to.throw('is served by 2 kernels');
    for (const { kernel } of prepared.bindings) kernel.dispose();
    expect(journal.events).to.deep.equal([
      'pack a/decode',
      'kernel a/decode 64',
      'kernel a/prefill 1024',
      'free kernel a/decode',
      'free kernel a/prefill',
    ]);
    prepared.dispose();
    expect(journal.events.at(-1)).to.equal('free pack of a');
  });

  for (const [part, weights] of [
    ['expert 0 gate', branded(8, 'fp8.block128')],
    ['expert 0 down', branded(8, 'nvfp4.w4a4', 'fp8.block128')],
  ] as const) {
    it(`does not hand FP8 weights to an FP4 backend, though a cast says they are FP4 (${part})`, async () => {
      const journal: Journal = { events: [] };
      const host = hostOf(moeBackend('b12x', 1, [rule], {}, journal));
      const error = await errorOf(prepareExperts(host, planFor(host), group, weights, context));
      expect(error.code).to.equal('MOE_PLUGIN_BRAND');
      expect(error.message).to.equal(
        `model.layers.0.mlp.experts, ${part}: the weights are branded fp8.block128, but the backend "b12x" (rule w4a4) was bound to nvfp4.w4a4. They are not handed over.`,
      );
      expect(error.details).to.include({ backend: 'b12x', rule: 'w4a4', layer: group.name, expected: 'nvfp4.w4a4', got: 'fp8.block128' });
      expect(journal.events).to.deep.equal([]);
    });
  }

  it('refuses weights without a brand', async () => {
    const host = hostOf(moeBackend('b12x', 1, [rule]));
    const bare = { numExperts: 8, expert: () => Promise.resolve({ gate: {}, up: {}, down: {} } as unknown as ExpertMatrices) };
    expect((await errorOf(prepareExperts(host, planFor(host), group, bare, context))).code).to.equal('MOE_PLUGIN_BRAND');
  });

  it('refuses a forged plan that binds a backend whose rules do not cover the group', async () => {
    const host = hostOf(moeBackend('b12x', 1, [rule]));
    const fp8 = expertGroup(0, 'fp8.block128');
    const error = await errorOf(prepareExperts(host, planFor(host), fp8, branded(8, 'fp8.block128'), context));
    expect(error.code).to.equal('MOE_UNSUPPORTED_LAYERS');
    expect(error.message).to.contain('it runs nvfp4.w4a4; these weights are fp8.block128.').and.to.contain('Make a new plan.');
  });

  it('refuses a plan that names a backend that is not installed, and one that binds nobody', async () => {
    const layerPlan = planFor(hostOf(moeBackend('gone', 1, [rule])));
    const host = hostOf(moeBackend('b12x', 1, [rule]));
    const weights = branded(8, 'nvfp4.w4a4');
    expect((await errorOf(prepareExperts(host, layerPlan, group, weights, context))).message).to.contain('it is not installed.');
    expect((await errorOf(prepareExperts(host, { ...layerPlan, bindings: [] }, group, weights, context))).code).to.equal(
      'MOE_UNSUPPORTED_LAYERS',
    );
  });

  it('refuses a binding whose kernel is not built', async () => {
    const host = hostOf(moeBackend('b12x', 1, [rule], { missing: () => 'The CUDA kernels come later.' }));
    const layerPlan = planFor(hostOf(moeBackend('b12x', 1, [rule])));
    expect((await errorOf(prepareExperts(host, layerPlan, group, branded(8, 'nvfp4.w4a4'), context))).message).to.contain(
      'its kernel is not built here: The CUDA kernels come later.',
    );
  });

  it('refuses calls larger than the plan was made for', async () => {
    const host = hostOf(moeBackend('b12x', 1, [rule]));
    const error = await errorOf(prepareExperts(host, planFor(host), group, branded(8, 'nvfp4.w4a4'), { ...context, maxNumTokens: 2048 }));
    expect(error.message).to.contain('calls of up to 1024 tokens; 2048 are to come');
  });

  const lies: [what: string, packed: { layout: string; schemes: readonly string[] }][] = [
    ['another layout', { layout: 'b12x/other@1', schemes: ['nvfp4.w4a4'] }],
    ['another scheme', { layout: 'b12x/rows@1', schemes: ['fp8.block128'] }],
    ['one scheme more', { layout: 'b12x/rows@1', schemes: ['nvfp4.w4a4', 'bf16'] }],
  ];
  for (const [what, { layout, schemes }] of lies) {
    it(`refuses packed weights of ${what}, and frees them`, async () => {
      let isFreed = false;
      const packed = { layout, [SCHEME]: schemes, residentBytes: 1, handle: undefined, dispose: () => void (isFreed = true) };
      const host = hostOf(moeBackend('b12x', 1, [rule], { pack: () => Promise.resolve(packed) }));
      const error = await errorOf(prepareExperts(host, planFor(host), group, branded(8, 'nvfp4.w4a4'), context));
      expect(error.code).to.equal('MOE_PLUGIN_BRAND');
      expect(isFreed).to.equal(true);
    });
  }

  it('frees what was made when a later kernel fails, and says where it failed', async () => {
    const journal: Journal = { events: [] };
    const rules = [
      expertRule('decode', ['nvfp4.w4a4'], { tokens: { max: 64 } }),
      expertRule('prefill', ['nvfp4.w4a4'], { tokens: { min: 65 } }),
    ];
    const { createKernel } = moeBackend('a', 1, rules, {}, journal);
    const failing: typeof createKernel = (of, one, packed, kernelContext) =>
      one.id === 'prefill' ? Promise.reject(new Error('out of registers')) : createKernel(of, one, packed, kernelContext);
    const host = hostOf(moeBackend('a', 1, rules, { createKernel: failing }, journal));
    const error = await errorOf(prepareExperts(host, planFor(host), group, branded(8, 'nvfp4.w4a4'), context));
    expect(error.code).to.equal('MOE_DEVICE_KERNEL');
    expect(error.message).to.equal('making the kernel a/prefill on model.layers.0.mlp.experts: out of registers');
    expect(journal.events.slice(-2)).to.deep.equal(['free kernel a/decode', 'free pack of a']);
  });

  it('refuses a kernel without an entry', async () => {
    const host = hostOf(moeBackend('b12x', 1, [rule], { createKernel: () => Promise.resolve({} as never) }));
    expect((await errorOf(prepareExperts(host, planFor(host), group, branded(8, 'nvfp4.w4a4'), context))).code).to.equal(
      'MOE_DEVICE_KERNEL',
    );
  });

  it('lets the owner of a layout pack for a backend that only reads it', async () => {
    const journal: Journal = { events: [] };
    const host = hostOf(
      moeBackend('reader', 9, [expertRule('r', ['nvfp4.w4a4'], { layout: 'owner/rows@1' })], {}, journal),
      moeBackend('owner', 1, [expertRule('p', ['nvfp4.w4a4'], { layout: 'owner/rows@1' })], {}, journal),
    );
    await prepareExperts(host, planFor(host), group, branded(8, 'nvfp4.w4a4'), context);
    expect(journal.events).to.deep.equal(['pack owner/p', 'kernel reader/r 1024']);
  });

  it('passes errors of ours through as they are', async () => {
    const host = hostOf(moeBackend('b12x', 1, [rule]));
    const weights = { numExperts: 8, expert: () => Promise.reject(new MoeError('MOE_CHECKPOINT_READ', 'the disk is gone')) };
    expect((await errorOf(prepareExperts(host, planFor(host), group, weights, context))).code).to.equal('MOE_CHECKPOINT_READ');
  });
});

describe('prepareLinear', () => {
  const spec = linear(0, 'fp8.channel');
  const prepareWith = async <S extends SchemeKey>(backend: LinearBackend<S>, brand: string) => {
    const host: PrepareHost = { moeBackends: [], linearBackends: registeredLinear(backend), hooks: createHooks(silentLogger) };
    const [layerPlan] = plan({
      layers: [spec],
      device: gb10,
      moeBackends: [],
      linearBackends: host.linearBackends,
      maxNumTokens: 1024,
    }).layers;
    if (layerPlan === undefined) throw new Error('no layer');
    const matrix = { [SCHEME]: brand, rows: 1, columns: 1, values: new Uint16Array(1) } as unknown as Bf16Weights;
    return prepareLinear(host, layerPlan, spec, { numModules: 1, module: () => Promise.resolve({ matrix, bias: undefined }) }, context);
  };
  const backend = linearBackend('l', 1, [linearRule('r', ['fp8.channel', 'fp8.block128'])]);

  it('makes the kernel of a linear', async () => {
    expect((await prepareWith(backend, 'fp8.channel')).kernel.entry.type).to.equal('js-linear');
  });

  it('checks the brand of every module, also against schemes that the backend does run', async () => {
    const error = await errorOf(prepareWith(backend, 'fp8.block128'));
    expect(error.code).to.equal('MOE_PLUGIN_BRAND');
    expect(error.details).to.include({ part: 'model.layers.0.self_attn.o_proj', expected: 'fp8.channel', got: 'fp8.block128' });
  });
});
