import type {
  Checkpoint,
  KernelVerification,
  LayerPlan,
  LinearSpec,
  ModelDescription,
  PackedCache,
  PrepareContext,
  Plan,
  PluginHost,
  PreparedLayer,
  TensorInfo,
} from '@moe-server/core';
import {
  MoeError,
  checkFiniteWeights,
  float32ToBf16,
  openExpertWeights,
  openLinearWeights,
  prepareExperts,
  prepareLinear,
  readKvScales,
} from '@moe-server/core';
import type { BufferRef } from './device/commands.js';
import type { Device } from './device/device.js';
import type { KvScales } from './kv-cache.js';
import type { BoundExperts, BoundKernel, BoundLinear, WeightSource } from './layers/weights.js';
import type { ModelConfig } from './model-config.js';
import { modelLoaders } from './models/index.js';
import type { Model } from './models/model.js';

export interface LoadModelOptions {
  readonly checkpoint: Checkpoint;
  /** What the plan was made from. */
  readonly description: ModelDescription;
  readonly plan: Plan;
  readonly host: PluginHost;
  readonly device: Device;
  readonly config: ModelConfig;
  /** The most tokens one step will bring to a kernel. */
  readonly maxNumTokens: number;
  /** Positions that a sequence can reach. */
  readonly maxPositions: number;
  /** The plan is for a device that is not here: its kernels' declared arithmetic runs in plain functions. Default false. */
  readonly simulate?: boolean;
  /** Checks every kernel before it serves; left out = kernels are taken at their word. */
  readonly verification?: KernelVerification;
  /** Packed weights on disk; left out = every layer is packed from the checkpoint. */
  readonly packedCache?: PackedCache;
  readonly onProgress?: (progress: LoadProgress) => void;
  readonly signal?: AbortSignal;
}

export interface LoadProgress {
  /** Bytes of the checkpoint read so far, and in all. */
  readonly bytesDone: number;
  readonly bytesTotal: number;
  /** What is being prepared: `model.layers.3.mlp.experts`. */
  readonly layer: string;
}

export interface LoadedModel {
  readonly model: Model;
  /** Scales of the FP8 cache, one entry per layer; 1 where the checkpoint has none. */
  readonly kvScales: readonly KvScales[];
  /** Packed weights, and what is read as it is (embedding, norms, routers, tables). */
  readonly residentBytes: number;
  /** Frees kernels, then packed weights. No step may run any more. */
  readonly dispose: () => void;
}

/**
 * Reads a checkpoint onto the device and makes the kernels that the plan names, layer by layer, so that beside the packed weights
 * only one layer's are in memory.
 *
 * @throws {MoeError} as reading, packing and the backends do; MOE_UNSUPPORTED_LAYERS for a layer that the plan leaves unserved; MOE_DEVICE_KERNEL
 * for a kernel that does not compute what its rule declares: core's `quarantineOf` says what to plan without. What was prepared until
 * then is freed.
 */
export async function loadModel(options: LoadModelOptions): Promise<LoadedModel> {
  const { checkpoint, config, maxPositions } = options;
  const weights = new CheckpointWeights(options);
  try {
    const model = await modelLoaders[config.architecture](weights, config, maxPositions);
    const kvScales = await readAllKvScales(checkpoint, config.numLayers);
    weights.finish();
    return {
      model,
      kvScales,
      residentBytes: weights.residentBytes,
      dispose: () => {
        weights.dispose();
      },
    };
  } catch (error) {
    weights.dispose();
    throw error;
  }
}

/** Rows of a table that are read at once, so that a large vocabulary is never in memory twice. */
const tableRowsPerRead = 4096;

class CheckpointWeights implements WeightSource {
  readonly #options: LoadModelOptions;
  readonly #layerPlans: ReadonlyMap<string, LayerPlan>;
  readonly #prepared: PreparedLayer[] = [];
  readonly #bytesTotal: number;
  #bytesDone = 0;
  #ownBytes = 0;

  constructor(options: LoadModelOptions) {
    this.#options = options;
    this.#layerPlans = new Map(options.plan.layers.map((layer) => [layer.name, layer]));
    this.#bytesTotal = options.checkpoint.weightBytes;
  }

  get residentBytes(): number {
    return this.#prepared.reduce((sum, layer) => sum + layer.residentBytes, this.#ownBytes);
  }

  readonly vector = async (name: string, length: number): Promise<BufferRef> => this.#floats(name, [length]);

  readonly matrix = async (name: string, rows: number, columns: number): Promise<BufferRef> => this.#floats(name, [rows, columns]);

  readonly table = async (name: string, rows: number, columns: number): Promise<BufferRef> => {
    const { checkpoint } = this.#options;
    const info = this.#checkShape(name, [rows, columns]);
    const ref = this.#allocate(2 * rows * columns, name);
    if (info.dtype !== 'bf16') {
      new Uint16Array(ref.buffer, ref.byteOffset, rows * columns).set(float32ToBf16(await checkpoint.readFloat32(name)));
    } else {
      for (let row = 0; row < rows; row += tableRowsPerRead) {
        const numRows = Math.min(tableRowsPerRead, rows - row);
        const place = new Uint8Array(ref.buffer, ref.byteOffset + 2 * row * columns, 2 * numRows * columns);
        checkFiniteWeights(info, await checkpoint.readRows(name, row, numRows, place), row * columns);
      }
    }
    this.#progress(name, bytesOfTensor(checkpoint, name));
    return ref;
  };

  readonly linear = async (modules: readonly string[]): Promise<BoundLinear> => {
    const { host, checkpoint } = this.#options;
    const spec = this.#findLinear(modules);
    const prepared = await prepareLinear(
      host,
      this.#layerPlan(spec.name),
      spec,
      openLinearWeights(checkpoint, spec),
      this.#context(spec.name),
    );
    this.#prepared.push(prepared);
    return { spec, kernels: kernelsOf(prepared) };
  };

  readonly experts = async (module: string): Promise<readonly BoundExperts[]> => {
    const { host, checkpoint, description } = this.#options;
    const groups = description.groups.filter(({ name }) => name === module || name.startsWith(`${module}#`));
    const bound: BoundExperts[] = [];
    for (const group of groups) {
      const weights = openExpertWeights(checkpoint, group);
      const prepared = await prepareExperts(host, this.#layerPlan(group.name), group, weights, this.#context(group.name));
      this.#prepared.push(prepared);
      bound.push({ group, kernels: kernelsOf(prepared) });
    }
    return bound;
  };

  readonly constant = (label: string, values: Float32Array | Int32Array): BufferRef => {
    const ref = this.#allocate(values.byteLength, label);
    new Uint8Array(ref.buffer, ref.byteOffset, values.byteLength).set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    return ref;
  };

  finish(): void {
    this.#options.onProgress?.({ bytesDone: this.#bytesTotal, bytesTotal: this.#bytesTotal, layer: 'all' });
  }

  dispose(): void {
    for (const layer of this.#prepared) layer.dispose();
    this.#prepared.length = 0;
  }

  async #floats(name: string, shape: readonly number[]): Promise<BufferRef> {
    const { checkpoint } = this.#options;
    this.#checkShape(name, shape);
    const ref = this.constant(name, await checkpoint.readFloat32(name));
    this.#progress(name, bytesOfTensor(checkpoint, name));
    return ref;
  }

  #allocate(byteLength: number, label: string): BufferRef {
    this.#options.signal?.throwIfAborted();
    this.#ownBytes += byteLength;
    return this.#options.device.allocate(byteLength, label);
  }

  #checkShape(name: string, shape: readonly number[]): TensorInfo {
    const info = this.#options.checkpoint.tensor(name);
    if (info.shape.length === shape.length && info.shape.every((size, i) => size === shape[i])) return info;
    throw new MoeError(
      'MOE_CHECKPOINT_TENSOR',
      `${info.file}: tensor ${name}: config.json makes it [${shape.join(', ')}], but its shape is [${info.shape.join(', ')}].`,
      { file: info.file, tensor: name, expected: shape, actual: info.shape },
    );
  }

  /** By its modules, or by its name: a tied lm_head has the embedding for its module. */
  #findLinear(modules: readonly string[]): LinearSpec {
    const { linears } = this.#options.description;
    const found = linears.find(
      (linear) =>
        linear.modules.length === modules.length &&
        (linear.name === modules[0] || linear.modules.every(({ name }, i) => name === modules[i])),
    );
    if (found !== undefined) return found;
    const parts = linears.filter((linear) => linear.modules.some(({ name }) => modules.includes(name)));
    throw new MoeError(
      'MOE_UNSUPPORTED_QUANTIZATION',
      `${modules.join(', ')} must have the same scheme, because they run as one linear; the checkpoint has ` +
        `${parts.map(({ name, scheme }) => `${name} in ${scheme}`).join(', ') || 'none of them'}.`,
      { modules, schemes: parts.map(({ name, scheme }) => ({ name, scheme })) },
    );
  }

  #layerPlan(name: string): LayerPlan {
    const layerPlan = this.#layerPlans.get(name);
    if (layerPlan === undefined)
      throw new MoeError('MOE_INTERNAL', `The plan has no layer ${name}; it was made for another model.`, { layer: name });
    return layerPlan;
  }

  #context(layer: string): PrepareContext {
    const { device, maxNumTokens, plan, simulate = false, verification, packedCache, signal } = this.#options;
    signal?.throwIfAborted();
    return {
      device: simulate ? plan.device : device.info,
      maxNumTokens,
      simulate,
      ...(verification === undefined ? {} : { verification }),
      ...(packedCache === undefined ? {} : { packedCache }),
      onProgress: (bytesRead) => {
        this.#progress(layer, bytesRead);
      },
      ...(signal === undefined ? {} : { signal }),
    };
  }

  #progress(layer: string, bytes: number): void {
    this.#bytesDone = Math.min(this.#bytesDone + bytes, this.#bytesTotal);
    this.#options.onProgress?.({ bytesDone: this.#bytesDone, bytesTotal: this.#bytesTotal, layer });
  }
}

function kernelsOf({ bindings }: PreparedLayer): BoundKernel[] {
  return bindings.map(({ kernel, binding }) => ({ kernel, tokens: binding.tokens }));
}

function bytesOfTensor(checkpoint: Checkpoint, name: string): number {
  const { begin, end } = checkpoint.tensor(name);
  return end - begin;
}

async function readAllKvScales(checkpoint: Checkpoint, numLayers: number): Promise<KvScales[]> {
  const scales: KvScales[] = [];
  for (let layer = 0; layer < numLayers; layer++) {
    const found = await readKvScales(checkpoint, `model.layers.${String(layer)}`);
    scales.push({ keyScale: found?.k ?? 1, valueScale: found?.v ?? 1 });
  }
  return scales;
}
