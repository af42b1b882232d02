import { Checkpoint, createPluginHost, describeModel, deviceProfile, loadPlugin, planWith } from '@moe-server/core';
import type { CpuFeature, KvCacheChoice, ModelDescription, NumericsChoice, Plan, PluginHost } from '@moe-server/core';
import { referencePlugin } from '@moe-server/core/conformance';
import type { BatchSequence, Device, LogitRow, ModelConfig, RowOutput, StepLimits } from '@moe-server/engine';
import { KvCache, ModelRunner, createCpuDevice, createTypescriptDevice, kvBlockSize, loadModel, readModelConfig } from '@moe-server/engine';
import { loadPlugins } from 'moe-server';

export type DeviceName = 'typescript' | 'cpu';

export interface RunningModelOptions {
  readonly device: DeviceName;
  /** Of the CPU device; default: what the processor has. */
  readonly features?: readonly CpuFeature[];
  /** A device whose kernels are simulated, by its profile's name; `device` is the TypeScript one then. */
  readonly simulate?: string;
  readonly numerics: NumericsChoice;
  readonly kvCacheDType?: KvCacheChoice;
  /** Looks at the device's work; see {@link RunningModel.open}. */
  readonly wrapDevice?: (device: Device) => Device;
}

const limits: StepLimits = { maxNumTokens: 256, maxNumSeqs: 8, maxLogitRows: 256, maxBlocksPerSeq: 32, maxAdjustments: 16 };
const numBlocks = 128;

/** A checkpoint on a device, put together as the composition root does it, and driven step by step. */
export class RunningModel {
  readonly config: ModelConfig;
  readonly plan: Plan;
  readonly description: ModelDescription;
  /** For an engine, which then has the cache's blocks to itself. */
  readonly runner: ModelRunner;
  readonly #dispose: () => void;
  #nextBlock = 0;

  private constructor(config: ModelConfig, plan: Plan, description: ModelDescription, runner: ModelRunner, dispose: () => void) {
    this.config = config;
    this.plan = plan;
    this.description = description;
    this.runner = runner;
    this.#dispose = dispose;
  }

  static async open(folder: string, options: RunningModelOptions): Promise<RunningModel> {
    const checkpoint = await Checkpoint.open(folder);
    try {
      return await RunningModel.#load(checkpoint, options);
    } finally {
      await checkpoint.close();
    }
  }

  static async #load(checkpoint: Checkpoint, options: RunningModelOptions): Promise<RunningModel> {
    const config = await readModelConfig(checkpoint);
    const description = describeModel(checkpoint, { kvCache: options.kvCacheDType ?? 'bf16' });
    const { simulate } = options;
    const host = simulate === undefined ? await hostFor(options.device) : (await loadPlugins({ plugins: false })).host;
    const plain =
      options.device === 'cpu'
        ? createCpuDevice({
            numThreads: 2,
            numerics: options.numerics === 'float32' ? 'float32' : 'auto',
            ...(options.features === undefined ? {} : { features: options.features }),
          })
        : createTypescriptDevice();
    const device = options.wrapDevice?.(plain) ?? plain;
    const layers = [...description.groups, ...description.linears];
    const plan = planWith(host, {
      layers,
      device: simulate === undefined ? device.info : deviceProfile(simulate),
      maxNumTokens: limits.maxNumTokens,
      numerics: { default: options.numerics },
      ...(simulate === undefined ? { requirements: { batchInvariant: true } } : { assumeBuilt: true }),
    });
    const maxPositions = limits.maxBlocksPerSeq * kvBlockSize;
    const loaded = await loadModel({
      checkpoint,
      description,
      plan,
      host,
      device,
      config,
      maxNumTokens: limits.maxNumTokens,
      maxPositions,
      simulate: simulate !== undefined,
    });
    const { numLayers, numKvHeads, headDim } = config;
    const dtype = description.kvCacheDType;
    const cache = KvCache.allocate(device, { dtype, numLayers, numKvHeads, headDim, blockSize: kvBlockSize }, numBlocks, loaded.kvScales);
    const runner = new ModelRunner({ device, model: loaded.model, cache, limits });
    return new RunningModel(config, plan, description, runner, () => {
      runner.dispose();
      loaded.dispose();
      device.dispose();
    });
  }

  /** A sequence with blocks of its own; `shared` blocks of another one come first. */
  newSequence(maxPositions: number, shared: readonly number[] = []): number[] {
    const blocks = [...shared];
    // Three back each time and from the middle on, so that nothing rests on blocks being neighbours.
    while (blocks.length * kvBlockSize < maxPositions) blocks.push((77 + (numBlocks - 3) * this.#nextBlock++) % numBlocks);
    return blocks;
  }

  /** Frees all blocks. */
  reset(): void {
    this.#nextBlock = 0;
  }

  /** Runs one step; logits of each row beside what was sampled. */
  async step(...sequences: BatchSequence[]): Promise<{ logits: readonly Float32Array[]; rows: readonly (readonly RowOutput[])[] }> {
    return this.runner.execute({ sequences }, { logits: true });
  }

  /** Logits at `positions` (default: all) of a prompt, computed at once. */
  async prefill(tokenIds: readonly number[], positions?: readonly number[]): Promise<readonly Float32Array[]> {
    this.reset();
    const rows = (positions ?? [...tokenIds.keys()]).map((tokenIndex) => ({ ...greedy, tokenIndex }));
    return (await this.step({ tokenIds, startPosition: 0, blockTable: this.newSequence(tokenIds.length), rows })).logits;
  }

  /** The greedy continuation, decoded token by token, and the logits that chose each. Ends early after one of `endTokenIds`. */
  async generate(
    prompt: readonly number[],
    maxTokens: number,
    endTokenIds: readonly number[] = [],
  ): Promise<{ tokenIds: number[]; logits: Float32Array[] }> {
    this.reset();
    const blockTable = this.newSequence(prompt.length + maxTokens);
    const out: { tokenIds: number[]; logits: Float32Array[] } = { tokenIds: [], logits: [] };
    let input = prompt;
    let startPosition = 0;
    while (out.tokenIds.length < maxTokens) {
      const rows = [{ ...greedy, tokenIndex: input.length - 1 }];
      const step = await this.step({ tokenIds: input, startPosition, blockTable, rows });
      const tokenId = step.rows[0]?.[0]?.tokenId ?? -1;
      out.tokenIds.push(tokenId);
      out.logits.push(...step.logits);
      if (endTokenIds.includes(tokenId)) break;
      startPosition += input.length;
      input = [tokenId];
    }
    return out;
  }

  /** Log-probability of each token but the first, given those before it. */
  async score(tokenIds: readonly number[]): Promise<number[]> {
    this.reset();
    const rows = tokenIds.slice(1).map((target, tokenIndex) => ({ ...greedy, tokenIndex, target }));
    const { rows: outputs } = await this.runner.execute({
      sequences: [{ tokenIds, startPosition: 0, blockTable: this.newSequence(tokenIds.length), rows }],
    });
    return (outputs[0] ?? []).map(({ logprob }) => logprob);
  }

  close(): void {
    this.#dispose();
  }
}

/** The backend of that device alone; the native one loaded by name, as the server does it. */
async function hostFor(device: DeviceName): Promise<PluginHost> {
  const host = createPluginHost();
  const module = device === 'cpu' ? ((await import('@moe-server/backend-cpu')) as { readonly default: unknown }) : undefined;
  await loadPlugin(host, module === undefined ? referencePlugin : module.default, 'the tests');
  return host;
}

export const greedy: LogitRow = {
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
