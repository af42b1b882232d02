import { expect } from 'chai';
import type { BoundLinear, WeightSource } from '../../src/layers/weights.js';
import type { ModelConfig } from '../../src/model-config.js';
import { DecoderModel } from '../../src/models/decoder-model.js';

const config = {
  vocabSize: 8,
  hiddenSize: 4,
  headDim: 4,
  rmsNormEps: 1e-6,
  numLayers: 2,
  rope: { theta: 10_000, scaling: { type: 'default' } },
} as unknown as ModelConfig;

describe('DecoderModel', () => {
  it('loads the vocabulary projection before anything else takes memory, and the embedding beside the layers', async () => {
    const calls: string[] = [];
    const ref = { buffer: new ArrayBuffer(0), byteOffset: 0, byteLength: 0 };
    let finishTable: () => void = () => expect.fail('the embedding is not read');
    const weights: WeightSource = {
      vector: (name) => {
        calls.push(name);
        return Promise.resolve(ref);
      },
      matrix: () => Promise.resolve(ref),
      table: (name) => {
        calls.push(name);
        return new Promise((resolve) => {
          finishTable = () => {
            resolve(ref);
          };
        });
      },
      linear: async (modules) => {
        await new Promise((resolve) => setImmediate(resolve));
        calls.push(...modules);
        return {} as BoundLinear;
      },
      experts: () => Promise.resolve([]),
      constant: () => ref,
    };
    const loaded = DecoderModel.load(weights, config, 16, (layer) => {
      calls.push(`layer ${String(layer)}`);
      if (layer === 1) finishTable();
      return Promise.resolve({} as never);
    });
    await loaded;
    expect(calls).to.deep.equal(['lm_head', 'model.embed_tokens.weight', 'layer 0', 'layer 1', 'model.norm.weight']);
  });
});
