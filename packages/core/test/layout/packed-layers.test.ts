import { expect } from 'chai';
import type { DeviceInfo, SchemeKey, WeightLayout } from '../../src/index.js';
import {
  expertSourceBytes,
  expertStacks,
  moduleSourceBytes,
  packedExpertsBytes,
  packedLinearBytes,
  packExperts,
  packLinear,
  SCHEME,
  unpackExpert,
  unpackLinear,
} from '../../src/index.js';
import {
  expertGroup,
  expertWeightsOf,
  linearSpec,
  linearWeightsOf,
  Random,
  randomExperts,
  randomModules,
} from '../../src/conformance/index.js';

const layout: WeightLayout = { id: 'test/interleaved@1', rows: 'interleaved', blockScales: 'swizzled' };
const stacked: WeightLayout = { id: 'test/stacked@1', rows: 'stacked', blockScales: 'swizzled' };
const device: DeviceInfo = { type: 'cuda', name: 'a device', sm: 120, memoryBytes: undefined };

describe('packExperts', () => {
  it('packs what unpackExpert gives back, with projections of different schemes and biases', async () => {
    const group = expertGroup({
      w13: 'nvfp4.w4a4',
      w2: 'fp8.channel',
      hiddenSize: 64,
      moeIntermediateSize: 48,
      numExperts: 3,
      topK: 1,
      hasBias: true,
    });
    const experts = randomExperts(group, new Random(1));
    const read: number[] = [];
    const packed = await packExperts(layout, group, expertWeightsOf(experts), { device, onProgress: (bytes) => read.push(bytes) });
    expect(packed.layout).to.equal(layout.id);
    expect(packed[SCHEME]).to.deep.equal(['nvfp4.w4a4', 'fp8.channel']);
    expect(packed.residentBytes).to.equal(packedExpertsBytes(layout, group));
    expect(read).to.deep.equal([0, 1, 2].map(() => expertSourceBytes(group)));
    experts.forEach((expert, slot) => {
      expect(unpackExpert(layout, group, packed, slot)).to.deep.equal(expert);
    });
    expect(() => unpackExpert(layout, group, packed, 3)).to.throw(RangeError);
  });

  it('holds one expert at a time', async () => {
    const group = expertGroup({ w13: 'bf16', hiddenSize: 64, moeIntermediateSize: 32, numExperts: 5, topK: 1 });
    const weights = expertWeightsOf(randomExperts(group, new Random(1)));
    let reading = 0;
    let most = 0;
    await packExperts(
      layout,
      group,
      {
        ...weights,
        expert: async (slot) => {
          most = Math.max(most, ++reading);
          const expert = await weights.expert(slot);
          reading--;
          return expert;
        },
      },
      { device },
    );
    expect(most).to.equal(1);
    expect(expertSourceBytes(group)).to.equal(3 * 64 * 32 * 2);
  });

  it('stops when told to', async () => {
    const group = expertGroup({ w13: 'bf16', hiddenSize: 64, moeIntermediateSize: 32, numExperts: 2, topK: 1 });
    const signal = AbortSignal.abort(new Error('enough'));
    const error = await packExperts(layout, group, expertWeightsOf(randomExperts(group, new Random(1))), { device, signal }).catch(
      (thrown: unknown) => thrown,
    );
    expect(error).to.have.property('message', 'enough');
  });

  it('says how much memory is missing', async () => {
    const group = { ...expertGroup({ w13: 'bf16', hiddenSize: 1 << 20, moeIntermediateSize: 1 << 20, numExperts: 1, topK: 1 }) };
    const weights = { numExperts: 1 << 20, expert: () => Promise.reject(new Error('nothing is read')) };
    const error = await packExperts(layout, group, weights, { device }).catch((thrown: unknown) => thrown);
    expect(error).to.have.property('code', 'MOE_DEVICE_MEMORY');
  });
});

describe('expertStacks', () => {
  it('refuses weights of another layout', async () => {
    const group = expertGroup({ w13: 'bf16', hiddenSize: 64, moeIntermediateSize: 32, numExperts: 1, topK: 1 });
    const packed = await packExperts(stacked, group, expertWeightsOf(randomExperts(group, new Random(1))), { device });
    expect(() => expertStacks(layout, group.name, packed)).to.throw(
      'read the layout test/interleaved@1, the packed weights have test/stacked@1',
    );
  });
});

describe('packLinear', () => {
  it('packs what unpackLinear gives back, modules of different heights each with their scales', async () => {
    for (const scheme of ['nvfp4.w4a4', 'fp8.tensor.static', 'fp8.block128', 'bf16'] as const satisfies readonly SchemeKey[]) {
      const linear = linearSpec(scheme, 64, [48, 16, 24], true);
      const modules = randomModules(linear, new Random(2));
      const packed = await packLinear(stacked, linear, linearWeightsOf(modules), { device });
      expect(packed.residentBytes).to.equal(packedLinearBytes(stacked, linear));
      expect(unpackLinear(stacked, linear, packed)).to.deep.equal(modules.map(({ matrix }) => matrix));
    }
  });

  it('counts the largest module beside the packed weights', () => {
    expect(moduleSourceBytes(linearSpec('bf16', 64, [48, 16, 24]))).to.equal(48 * 64 * 2);
  });

  it('adds zeros for a module without the bias that its neighbours have', async () => {
    const linear = linearSpec('bf16', 64, [48, 16], true);
    const modules = randomModules(linear, new Random(2)).map(({ matrix, bias }, i) => ({ matrix, bias: i === 0 ? bias : undefined }));
    const packed = await packLinear(stacked, linear, linearWeightsOf(modules), { device });
    expect(unpackLinear(stacked, linear, packed)).to.have.length(2);
  });
});
