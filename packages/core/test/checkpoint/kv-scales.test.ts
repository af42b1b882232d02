import { expect } from 'chai';
import { readKvScales } from '../../src/checkpoint/kv-scales.js';
import { floats, withCheckpoint } from './tiny-models.js';

const layer = 'model.layers.3';

async function read(scales: Readonly<Record<string, number>>): Promise<unknown> {
  const tensors = Object.fromEntries(
    Object.entries(scales).map(([name, value]) => [`${layer}.${name}`, floats([], Float32Array.of(value))]),
  );
  return withCheckpoint({ config: {}, tensors: { ...tensors, other: floats([1], Float32Array.of(1)) } }, (checkpoint) =>
    readKvScales(checkpoint, layer),
  );
}

describe('readKvScales', () => {
  const cases: readonly [Readonly<Record<string, number>>, unknown][] = [
    [{}, undefined],
    [
      { 'self_attn.k_proj.k_scale': 0.5, 'self_attn.v_proj.v_scale': 2 },
      { k: 0.5, v: 2 },
    ],
    [
      { 'self_attn.k_scale': 0.5, 'self_attn.v_scale': 2 },
      { k: 0.5, v: 2 },
    ],
    [
      { 'attn.k_scale': 0.5, 'attn.v_scale': 2 },
      { k: 0.5, v: 2 },
    ],
    [{ 'self_attn.kv_scale': 0.25 }, { k: 0.25, v: 0.25 }],
    [{ 'self_attn.k_proj.k_scale': 0.5 }, { k: 0.5, v: 1 }],
  ];
  for (const [scales, expected] of cases) {
    it(`reads ${JSON.stringify(scales)} as ${JSON.stringify(expected)}`, async () => {
      expect(await read(scales)).to.deep.equal(expected);
    });
  }

  for (const value of [NaN, 0, -1, Infinity]) {
    it(`refuses the scale ${String(value)}, naming the tensor`, async () => {
      const error = await read({ 'self_attn.k_proj.k_scale': value }).catch((thrown: unknown) => thrown);
      expect(error).to.have.property('code', 'MOE_CHECKPOINT_TENSOR');
      expect(error).to.have.property('message').that.includes(`${layer}.self_attn.k_proj.k_scale`);
    });
  }
});
