import { expect } from 'chai';
import type { LinearBackend, MoeBackend } from '../../src/backend.js';
import {
  createReferenceLinearBackend,
  createReferenceMoeBackend,
  expertGroup,
  expertWeightsOf,
  linearSpec,
  linearWeightsOf,
  Random,
  randomExperts,
  randomExpertsCall,
  randomLinearCall,
  randomModules,
  referenceExperts,
  referenceLinear,
} from '../../src/conformance/index.js';
import type { CudaDeviceInfo } from '../../src/device-info.js';
import { createHooks } from '../../src/hooks.js';
import type { LayerSpec } from '../../src/layer-spec.js';
import { plan } from '../../src/oracle/plan.js';
import type { LayerPlan } from '../../src/oracle/plan-types.js';
import { prepareExperts, prepareLinear, type PrepareHost } from '../../src/oracle/prepare.js';
import { silentLogger } from '../../src/tokens.js';
import { registered, registeredLinear } from '../oracle/declared-backends.js';

const device: CudaDeviceInfo = { type: 'cuda', name: 'a GPU', sm: 120, memoryBytes: undefined };
const maxNumTokens = 4;
const declared = { type: 'cuda', sm: [120] } as const;

/** Backends for a GPU that is not here, and kernels that nobody wrote. */
function gpuBackends(unpack?: MoeBackend['unpack']): { moe: MoeBackend; linear: LinearBackend } {
  const common = { missing: () => 'they come later', createKernel: () => Promise.reject(new Error('nobody asks for a kernel')) };
  const experts = createReferenceMoeBackend();
  const linear = createReferenceLinearBackend();
  return {
    moe: { ...experts, ...common, rules: experts.rules.map((rule) => ({ ...rule, device: declared })), unpack: unpack ?? experts.unpack },
    linear: { ...linear, ...common, rules: linear.rules.map((rule) => ({ ...rule, device: declared })) },
  };
}

function prepared({ moe, linear }: ReturnType<typeof gpuBackends>, layer: LayerSpec): { host: PrepareHost; layerPlan: LayerPlan } {
  const host = { moeBackends: registered(moe), linearBackends: registeredLinear(linear), hooks: createHooks(silentLogger) };
  const numerics = { default: 'same' } as const;
  const made = plan({ layers: [layer], device, ...host, maxNumTokens, assumeBuilt: true, numerics });
  return { host, layerPlan: made.layers[0]! };
}

describe('simulated kernels', () => {
  const context = { device, maxNumTokens, simulate: true };
  const group = expertGroup({ w13: 'nvfp4.w4a4', hiddenSize: 64, moeIntermediateSize: 32, numExperts: 3, topK: 2 });
  const experts = randomExperts(group, new Random(1));

  it('run the declared arithmetic of experts whose kernels are not built, through unpacked weights', async () => {
    const { host, layerPlan } = prepared(gpuBackends(), group);
    expect(layerPlan.bindings[0]).to.include({ rule: 'same', built: false });
    const { kernel } = await prepareExperts(host, layerPlan, group, expertWeightsOf(experts), context);
    const call = randomExpertsCall(group, maxNumTokens, 'spread', new Random(2));
    const { rules } = createReferenceMoeBackend();
    const expected = referenceExperts({ ...call, group, arithmetic: rules.find(({ id }) => id === 'same')!.arithmetic, experts });
    const output = new Float32Array(expected.length).fill(1);
    if (kernel.entry.type !== 'js-experts') throw new TypeError(kernel.entry.type);
    kernel.entry.run({ ...call, output, accumulate: true });
    expect(output).to.deep.equal(Float32Array.from(expected, (value) => value + 1));
  });

  it('keep the biases of a linear, which unpacking does not give back', async () => {
    const linear = linearSpec('fp8.channel', 32, [16, 8], true);
    const modules = randomModules(linear, new Random(3));
    const { host, layerPlan } = prepared(gpuBackends(), linear);
    const { kernel } = await prepareLinear(host, layerPlan, linear, linearWeightsOf(modules), context);
    const call = randomLinearCall(linear, maxNumTokens, new Random(4));
    const { rules } = createReferenceLinearBackend();
    const expected = referenceLinear({ ...call, linear, arithmetic: rules.find(({ id }) => id === 'same')!.arithmetic, modules });
    const output = new Float32Array(expected.length);
    if (kernel.entry.type !== 'js-linear') throw new TypeError(kernel.entry.type);
    kernel.entry.run({ ...call, output, accumulate: false });
    expect(output).to.deep.equal(Float32Array.from(expected));
  });

  it('do not take weights that come back in another scheme', async () => {
    const foreign = randomExperts(
      expertGroup({ w13: 'bf16', hiddenSize: 64, moeIntermediateSize: 32, numExperts: 3, topK: 2 }),
      new Random(1),
    );
    const { host, layerPlan } = prepared(
      gpuBackends((_group, _packed, slot) => foreign[slot]!),
      group,
    );
    const error: unknown = await prepareExperts(host, layerPlan, group, expertWeightsOf(experts), context).catch(
      (thrown: unknown) => thrown,
    );
    expect(error).to.have.property('code', 'MOE_PLUGIN_BRAND');
  });

  it('are asked for: without, a kernel that is not built is refused', async () => {
    const { host, layerPlan } = prepared(gpuBackends(), group);
    const preparing = prepareExperts(host, layerPlan, group, expertWeightsOf(experts), { device, maxNumTokens });
    const error: unknown = await preparing.catch((thrown: unknown) => thrown);
    expect(error).to.have.property('code', 'MOE_UNSUPPORTED_LAYERS');
    expect(error).to.have.property('message').that.contains('its kernel is not built here: they come later');
  });
});
