import type { Kernel } from '@moe-server/core';
import { expect } from 'chai';
import type { BatchSequence, LogitRow } from '../src/batch.js';
import type { BufferRef, KvCacheLayer } from '../src/device/commands.js';
import type { Device } from '../src/device/device.js';
import type { StepInputs } from '../src/device/step-inputs.js';
import { createTypescriptDevice } from '../src/device/typescript-device.js';
import { KvCache } from '../src/kv-cache.js';
import type { StepEncoder } from '../src/layers/step-encoder.js';
import { parseModelConfig } from '../src/model-config.js';
import { ModelRunner } from '../src/model-runner.js';
import type { Model } from '../src/models/model.js';

const vocabSize = 4;

/** A model whose logits are rows of its embedding table: row t has its largest value at token t + 1. */
function successorModel(device: Device): Model {
  const table = device.allocate(2 * vocabSize * vocabSize, 'table');
  const patterns = new Uint16Array(table.buffer);
  for (let t = 0; t < vocabSize; t++) patterns[t * vocabSize + ((t + 1) % vocabSize)] = 0x4000;
  const config = parseModelConfig(
    {
      architectures: ['MixtralForCausalLM'],
      hidden_size: vocabSize,
      intermediate_size: 1,
      max_position_embeddings: 64,
      num_attention_heads: 1,
      num_hidden_layers: 1,
      num_key_value_heads: 1,
      vocab_size: vocabSize,
    },
    undefined,
  );
  const encode = (encoder: StepEncoder, cache: readonly KvCacheLayer[]): BufferRef => {
    expect(cache).to.have.lengthOf(1);
    const hidden = encoder.buffer('hidden', 'tokens', vocabSize);
    const logits = encoder.buffer('logits', 'logitRows', vocabSize);
    encoder.append({ op: 'embed', table, vocabSize, width: vocabSize, output: hidden });
    encoder.append({ op: 'gatherRows', width: vocabSize, input: hidden, output: logits });
    return logits;
  };
  return { config, encode };
}

const greedyRow: LogitRow = {
  tokenIndex: 0,
  target: -1,
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  seed: 0n,
  counter: 0,
  numTopLogprobs: 0,
  adjustments: [],
};

const limits = { maxNumTokens: 6, maxNumSeqs: 2, maxLogitRows: 3, maxBlocksPerSeq: 3, maxAdjustments: 2 };

function spyKernel(name: string, called: string[]): Kernel {
  return { entry: { type: 'js-linear', run: () => called.push(name) }, workspaceBytes: () => 0, dispose: () => undefined };
}

function createRunner(): { runner: ModelRunner; submitted: StepInputs[] } {
  const device = createTypescriptDevice();
  const submitted: StepInputs[] = [];
  const watched: Device = {
    ...device,
    submit: (program, inputs) => {
      submitted.push(inputs);
      return device.submit(program, inputs);
    },
  };
  const cache = KvCache.allocate(device, { dtype: 'bf16', numLayers: 1, numKvHeads: 1, headDim: 4, blockSize: 4 }, 8, []);
  return { runner: new ModelRunner({ device: watched, model: successorModel(device), cache, limits }), submitted };
}

const decode: BatchSequence = { tokenIds: [3], startPosition: 5, blockTable: [6, 2], rows: [greedyRow] };
const prefill: BatchSequence = {
  tokenIds: [0, 1, 2],
  startPosition: 3,
  blockTable: [7, 1],
  rows: [
    { ...greedyRow, tokenIndex: 1, target: 0 },
    { ...greedyRow, tokenIndex: 2, numTopLogprobs: 2, adjustments: [{ tokenId: 3, bias: -9, outputCount: 2, isSeen: true }] },
  ],
};

describe('ModelRunner', () => {
  it('lays the batch out as the device reads it', async () => {
    const { runner, submitted } = createRunner();
    await runner.execute({ sequences: [decode, prefill] });
    const inputs = submitted[0]!;
    expect([...inputs.header.subarray(0, 3)]).to.deep.equal([4, 2, 3]);
    expect([...inputs.tokenIds.subarray(0, 4)]).to.deep.equal([3, 0, 1, 2]);
    expect([...inputs.positions.subarray(0, 4)]).to.deep.equal([5, 3, 4, 5]);
    expect([...inputs.slots.subarray(0, 4)]).to.deep.equal([2 * 4 + 1, 7 * 4 + 3, 4, 5]);
    expect([...inputs.queryStarts]).to.deep.equal([0, 1, 4]);
    expect([...inputs.contextLengths]).to.deep.equal([6, 6]);
    expect([...inputs.blockTables.subarray(0, 5)]).to.deep.equal([6, 2, 0, 7, 1]);
    expect([...inputs.logitRows]).to.deep.equal([0, 2, 3]);
    expect([...inputs.adjustmentStarts]).to.deep.equal([0, 0, 0, 1]);
    expect([...inputs.adjustmentWords.subarray(2, 4)]).to.deep.equal([2, 1]);
    expect(inputs.adjustmentBiases[1]).to.equal(-9);
  });

  it('returns what was sampled, scored and asked for', async () => {
    const { runner } = createRunner();
    const { rows } = await runner.execute({ sequences: [decode, prefill] });
    expect(rows.map((sequence) => sequence.map(({ tokenId }) => tokenId))).to.deep.equal([[0], [0, 0]]);
    expect(rows[1]?.[0]?.topLogprobs).to.deep.equal([]);
    expect(rows[1]?.[1]?.topLogprobs.map(({ tokenId }) => tokenId)).to.deep.equal([3, 0]);
    expect(rows[1]?.[1]?.rank).to.equal(2);
  });

  it('gives logits as they were before sampling', async () => {
    const { runner } = createRunner();
    const { logits, rows } = await runner.execute({ sequences: [prefill] }, { logits: true });
    expect(logits.map((row) => [...row])).to.deep.equal([
      [0, 0, 2, 0],
      [0, 0, 0, 2],
    ]);
    expect(rows[0]?.[1]?.tokenId).to.equal(0);
  });

  it('runs a step without logit rows', async () => {
    const { runner } = createRunner();
    expect(await runner.execute({ sequences: [{ ...prefill, rows: [] }] })).to.deep.equal({ rows: [[]] });
  });

  for (const [what, sequences] of [
    ['tokens', [prefill, { ...prefill, tokenIds: [0, 0, 0, 0] }]],
    ['sequences', [decode, decode, decode]],
    ['logit rows', [{ ...prefill, rows: [greedyRow, greedyRow, greedyRow, greedyRow] }]],
    ['blocks of one sequence', [{ ...decode, startPosition: 12, blockTable: [1, 2, 3, 4] }]],
  ] as const) {
    it(`refuses more ${what} than a step holds`, async () => {
      const { runner } = createRunner();
      const failure = await runner.execute({ sequences }).catch((error: unknown) => error);
      expect(String(failure)).to.contain(`${what} exceeds the limit`);
      expect((await runner.execute({ sequences: [decode] })).rows).to.have.lengthOf(1);
    });
  }

  it('records a step anew where layers have other kernels for its size', async () => {
    const device = createTypescriptDevice();
    const model = successorModel(device);
    const called: string[] = [];
    const kernels = [
      { kernel: spyKernel('few', called), tokens: { min: 1, max: 2 } },
      { kernel: spyKernel('many', called), tokens: { min: 3, max: 6 } },
    ];
    const encode = (encoder: StepEncoder, cache: readonly KvCacheLayer[]): BufferRef => {
      const scratch = encoder.buffer('scratch', 'tokens', 1);
      const sizes = { inFeatures: 1, outFeatures: 1, input: scratch, output: scratch, accumulate: false };
      encoder.append({ op: 'linear', rows: 'tokens', name: 'spy', kernel: encoder.choose(kernels, 'tokens'), ...sizes });
      return model.encode(encoder, cache);
    };
    const cache = KvCache.allocate(device, { dtype: 'bf16', numLayers: 1, numKvHeads: 1, headDim: 4, blockSize: 4 }, 8, []);
    const runner = new ModelRunner({ device, model: { ...model, encode }, cache, limits });
    for (const sequences of [[decode], [prefill], [decode], [decode, prefill]]) await runner.execute({ sequences });
    expect(called).to.deep.equal(['few', 'many', 'few', 'many']);
  });

  it('refuses a second step while one runs', async () => {
    const { runner } = createRunner();
    const first = runner.execute({ sequences: [decode] });
    const second = await runner.execute({ sequences: [decode] }).catch((error: unknown) => error);
    expect(String(second)).to.contain('another one runs');
    await first;
  });
});
