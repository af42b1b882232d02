import {
  Checkpoint,
  createPluginHost,
  definePlugin,
  contractVersion,
  describeModel,
  isMoeError,
  loadPlugin,
  planWith,
} from '@moe-server/core';
import type { LinearBackend, MoeBackend, PackedWeights, Plugin } from '@moe-server/core';
import { createReferenceLinearBackend, createReferenceMoeBackend, referencePlugin } from '@moe-server/core/conformance';
import { fixtureFolder } from '@moe-server/test-kit';
import { expect } from 'chai';
import { createTypescriptDevice } from '../src/device/typescript-device.js';
import type { ModelConfig } from '../src/model-config.js';
import { readModelConfig } from '../src/model-config.js';
import type { LoadProgress, LoadedModel } from '../src/model-loader.js';
import { loadModel } from '../src/model-loader.js';

interface Changes {
  readonly plugin?: Plugin;
  readonly config?: Partial<ModelConfig>;
  readonly onProgress?: (progress: LoadProgress) => void;
  readonly signal?: AbortSignal;
}

async function load(name: string, { plugin = referencePlugin, config: changedConfig, ...options }: Changes = {}): Promise<LoadedModel> {
  const checkpoint = await Checkpoint.open(fixtureFolder(name) ?? name);
  try {
    const config = { ...(await readModelConfig(checkpoint)), ...changedConfig };
    const description = describeModel(checkpoint);
    const host = createPluginHost();
    await loadPlugin(host, plugin, 'the test');
    const device = createTypescriptDevice();
    const plan = planWith(host, { layers: [...description.groups, ...description.linears], device: device.info, maxNumTokens: 8 });
    return await loadModel({ checkpoint, description, plan, host, device, config, maxNumTokens: 8, maxPositions: 64, ...options });
  } finally {
    await checkpoint.close();
  }
}

async function failureOf(loading: Promise<LoadedModel>): Promise<{ code: string; message: string }> {
  const failure: unknown = await loading.catch((error: unknown) => error);
  expect(isMoeError(failure), String(failure)).to.equal(true);
  return failure as { code: string; message: string };
}

/** The reference backends, counting what they pack and what is disposed. */
function countingPlugin(): { plugin: Plugin; alive: () => number; packed: () => number } {
  let alive = 0;
  let packed = 0;
  const count = (weights: PackedWeights): PackedWeights => {
    alive++;
    packed++;
    return {
      ...weights,
      dispose: () => {
        alive--;
      },
    };
  };
  const moe = createReferenceMoeBackend();
  const linear = createReferenceLinearBackend();
  const countedMoe: MoeBackend = { ...moe, pack: async (...args) => count(await moe.pack(...args)) };
  const countedLinear: LinearBackend = { ...linear, pack: async (...args) => count(await linear.pack(...args)) };
  const plugin = definePlugin({
    name: 'counting',
    version: '1.0.0',
    contract: contractVersion,
    apply: (host) => {
      host.addMoeBackend(countedMoe);
      host.addLinearBackend(countedLinear);
    },
  });
  return { plugin, alive: () => alive, packed: () => packed };
}

describe('loadModel', () => {
  it('prepares layer by layer and reports bytes up to the total', async () => {
    const reports: LoadProgress[] = [];
    const loaded = await load('qwen3moe-ct-mixed-experts', { onProgress: (progress) => reports.push(progress) });
    const layers = [...new Set(reports.map(({ layer }) => layer))].filter((layer) => layer.includes('experts'));
    expect(layers.map((layer) => layer.replace(/#.*/, ''))).to.deep.equal([
      'model.layers.0.mlp.experts',
      'model.layers.0.mlp.experts',
      'model.layers.1.mlp.experts',
      'model.layers.1.mlp.experts',
    ]);
    const done = reports.map(({ bytesDone }) => bytesDone);
    expect(done).to.deep.equal([...done].sort((a, b) => a - b));
    expect(reports.at(-1)).to.include({ bytesDone: reports[0]?.bytesTotal });
    loaded.dispose();
  });

  it('reads the scales of an FP8 cache, 1 where there are none', async () => {
    const calibrated = await load('qwen3moe-modelopt-nvfp4');
    expect(calibrated.kvScales[0]?.keyScale).to.be.within(0.001, 0.5);
    expect(calibrated.kvScales[0]?.valueScale).not.to.equal(calibrated.kvScales[0]?.keyScale);
    const plain = await load('mixtral-bf16');
    expect(plain.kvScales).to.deep.equal([
      { keyScale: 1, valueScale: 1 },
      { keyScale: 1, valueScale: 1 },
    ]);
  });

  it('frees every packed layer when disposed', async () => {
    const { plugin, alive, packed } = countingPlugin();
    const loaded = await load('mixtral-bf16', { plugin });
    expect(alive()).to.equal(packed()).and.to.be.greaterThan(6);
    loaded.dispose();
    expect(alive()).to.equal(0);
  });

  it('names file and tensor of a shape that contradicts the configuration, and frees what it had prepared', async () => {
    const { plugin, alive, packed } = countingPlugin();
    const { code, message } = await failureOf(load('qwen3moe-ct-mixed', { plugin, config: { headDim: 32 } }));
    expect(code).to.equal('MOE_CHECKPOINT_TENSOR');
    expect(message)
      .to.contain('model.safetensors')
      .and.to.contain('model.layers.0.self_attn.q_norm.weight')
      .and.to.contain('[32]')
      .and.to.contain('[64]');
    expect(packed()).to.be.greaterThan(0);
    expect(alive()).to.equal(0);
  });

  it('names a tensor that is missing', async () => {
    const { code, message } = await failureOf(load('mixtral-bf16', { config: { hasQkNorm: true } }));
    expect(code).to.equal('MOE_CHECKPOINT_TENSOR');
    expect(message).to.contain('model.layers.0.self_attn.q_norm.weight');
  });

  it('stops when it is told to, and frees what it had prepared', async () => {
    const { plugin, alive } = countingPlugin();
    const controller = new AbortController();
    const onProgress = ({ layer }: LoadProgress): void => {
      if (layer.endsWith('experts')) controller.abort(new Error('enough'));
    };
    const failure: unknown = await load('mixtral-bf16', { plugin, onProgress, signal: controller.signal }).catch((error: unknown) => error);
    expect(String(failure)).to.contain('enough');
    expect(alive()).to.equal(0);
  });
});
