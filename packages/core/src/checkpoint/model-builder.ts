import { isMoeError, MoeError } from '../errors.js';
import type { KvCacheDType } from '../kv-cache.js';
import { singleRank, type Activation, type ExpertGroupSpec, type LayerRole, type LinearSpec, type RoutingMethod } from '../layer-spec.js';
import type { SchemeKey } from '../quant/quant-scheme.js';
import type { Checkpoint } from './checkpoint.js';
import { findExpertStorage, locateStackedExperts } from './expert-storage.js';
import { isStoredPlain, locateModule, tensorError } from './module-tensors.js';
import type { Partition, Parts } from './partition.js';
import type { QuantizationConfig } from './quantization/quantization-config.js';

const maxProblems = 10;

export interface LinearDescription {
  /** Name of the fusion, `model.layers.0.self_attn.qkv_proj`; unused when there is one module. */
  readonly name: string;
  readonly modules: readonly ModuleDescription[];
  readonly inFeatures: number;
  /** Tensor parallel cuts the columns, at these; the modules' rows are whole then. */
  readonly inParts?: Parts;
  readonly layerIndex: number | undefined;
  readonly role: LayerRole;
  readonly hasBias: boolean;
  /** The module is the embedding, which serves as the output head too: no quantization config speaks of it. */
  readonly isEmbedding?: boolean;
}

export interface ModuleDescription {
  readonly name: string;
  readonly outFeatures: number;
  /** Tensor parallel cuts the rows, at these. Without parts of either kind every rank has the whole linear. */
  readonly outParts?: Parts;
  /** What it computes is stored in the KV cache. */
  readonly isCached?: boolean;
}

export interface ExpertsDescription {
  /** Module that holds the experts. */
  readonly name: string;
  readonly layerIndex: number;
  readonly role: LayerRole;
  readonly hiddenSize: number;
  readonly moeIntermediateSize: number;
  /** The field of config.json that holds it. */
  readonly widthField?: string;
  readonly numExperts: number;
  readonly topK: number;
  readonly activation: Activation;
  readonly hasBias: boolean;
  readonly routing: RoutingMethod;
}

/**
 * Gathers what a family says of its layers, asks the quantization config and the tensor headers for the scheme of each, and keeps what
 * does not fit together, so that one error can name it all.
 */
export class ModelBuilder {
  readonly checkpoint: Checkpoint;
  readonly groups: ExpertGroupSpec[] = [];
  readonly linears: LinearSpec[] = [];
  readonly #quantization: QuantizationConfig;
  readonly #partition: Partition;
  readonly #kvCacheDType: KvCacheDType;
  readonly #problems: Record<LayerRole, MoeError[]> = { target: [], draft: [] };

  constructor(checkpoint: Checkpoint, quantization: QuantizationConfig, partition: Partition, kvCacheDType: KvCacheDType) {
    this.checkpoint = checkpoint;
    this.#quantization = quantization;
    this.#partition = partition;
    this.#kvCacheDType = kvCacheDType;
  }

  /** Adds a linear; modules whose schemes differ are not fused but become linears of their own. */
  linear(description: LinearDescription): void {
    const { name, modules, inFeatures, inParts, layerIndex, role, hasBias } = description;
    const schemes = modules.map((module) =>
      this.#collect(role, () =>
        description.isEmbedding === true
          ? locateModule(this.checkpoint, module.name, undefined, module.outFeatures, inFeatures).scheme
          : this.#schemeOf(module.name, role, module.outFeatures, inFeatures),
      ),
    );
    for (const module of modules) this.#checkBias(module, role, hasBias);
    const isFused = modules.length > 1 && new Set(schemes).size === 1;
    const parts = isFused
      ? [{ name, modules }]
      : modules.map((module) => ({ name: modules.length > 1 ? module.name : name, modules: [module] }));
    for (const [i, part] of parts.entries()) {
      const scheme = schemes[i];
      if (scheme === undefined) continue;
      const own = part.modules.map(({ name: module, outFeatures, outParts }) => ({
        name: module,
        outFeatures: outParts === undefined ? outFeatures : this.#partition.shareOfLinear(outFeatures, outParts),
      }));
      const cut = inParts !== undefined ? 'inFeatures' : part.modules[0]?.outParts !== undefined ? 'outFeatures' : undefined;
      const isCut = cut !== undefined && this.#partition.linears.tpSize > 1;
      const cachedAs =
        this.#kvCacheDType !== 'bf16' && part.modules.some(({ isCached }) => isCached === true) ? this.#kvCacheDType : undefined;
      this.linears.push({
        kind: 'linear',
        name: part.name,
        modules: own,
        role,
        layerIndex,
        scheme,
        inFeatures: inParts === undefined ? inFeatures : this.#partition.shareOfLinear(inFeatures, inParts),
        outFeatures: own.reduce((sum, module) => sum + module.outFeatures, 0),
        ...(isCut ? { cut } : {}),
        hasBias,
        ...(cachedAs === undefined ? {} : { cachedAs }),
        parallel: isCut ? this.#partition.linears : singleRank,
      });
    }
  }

  /** Adds the experts of a layer, as one group or as several where experts have different schemes. */
  experts(description: ExpertsDescription): void {
    const { name, role, numExperts, activation } = description;
    const storage = findExpertStorage(this.checkpoint, name, activation.type === 'swiglu');
    const members = new Map<string, { readonly w13: SchemeKey; readonly w2: SchemeKey; readonly experts: number[] }>();
    const add = (w13: SchemeKey, w2: SchemeKey, experts: readonly number[]): void => {
      const key = w13 === w2 ? w13 : `${w13}+${w2}`;
      const group = members.get(key);
      if (group === undefined) members.set(key, { w13, w2, experts: [...experts] });
      else group.experts.push(...experts);
    };
    if (storage.type === 'per-expert') {
      this.#checkNoFurtherExpert(description, storage.projections.gate);
      for (let expert = 0; expert < numExperts; expert++) {
        const schemes = this.#collect(role, () => this.#schemesOfExpert(description, `${name}.${String(expert)}`, storage.projections));
        if (schemes !== undefined) add(schemes.w13, schemes.w2, [expert]);
      }
    } else {
      const scheme = this.#collect(role, () => {
        const { scheme: stored } = locateStackedExperts(this.checkpoint, name, storage, description);
        this.#checkStacked(name, role, stored);
        return stored;
      });
      if (scheme !== undefined)
        add(
          scheme,
          scheme,
          Array.from({ length: numExperts }, (_, expert) => expert),
        );
    }
    const { widthField = 'moe_intermediate_size', ...rest } = description;
    const moeIntermediateSize = this.#partition.shareOfExpert(description.moeIntermediateSize, widthField);
    const { first, end } = this.#partition.ownExperts(numExperts);
    for (const [key, { w13, w2, experts }] of members) {
      const own = experts.filter((expert) => expert >= first && expert < end);
      if (own.length === 0) continue;
      this.groups.push({
        kind: 'moe',
        ...rest,
        moeIntermediateSize,
        name: members.size === 1 ? name : `${name}#${key}`,
        schemes: { w13, w2 },
        experts: own,
        parallel: this.#partition.experts,
      });
    }
  }

  /**
   * Ends the gathering.
   *
   * @returns what keeps the draft layers from being used; they are taken out then. Undefined when nothing does.
   * @throws {MoeError} MOE_CHECKPOINT_TENSOR naming the first ten things that do not fit in the target's layers, or the first
   *   MOE_UNSUPPORTED_QUANTIZATION; MOE_UNSUPPORTED_PARALLEL when sizes do not divide over the ranks.
   */
  finish(): MoeError | undefined {
    const target = summarize(this.#problems.target);
    if (target !== undefined) throw target;
    this.#partition.check();
    const draft = summarize(this.#problems.draft);
    if (draft !== undefined) {
      retain(this.groups, (group) => group.role === 'target');
      retain(this.linears, (linear) => linear.role === 'target');
    }
    return draft;
  }

  #collect<T>(role: LayerRole, find: () => T): T | undefined {
    try {
      return find();
    } catch (error) {
      if (!isMoeError(error)) throw error;
      this.#problems[role].push(error);
      return undefined;
    }
  }

  #schemeOf(module: string, role: LayerRole, rows: number, columns: number): SchemeKey {
    let scheme = this.#quantization.schemeOf(module);
    // Exporters leave prediction heads out without listing all of their modules; where the tensors are plain there is no doubt.
    const mayBePlain = scheme !== undefined && (role === 'draft' || this.#quantization.mayBePlain(module));
    if (mayBePlain && isStoredPlain(this.checkpoint, module)) scheme = undefined;
    return locateModule(this.checkpoint, module, scheme, rows, columns).scheme;
  }

  #schemesOfExpert(
    { role, hiddenSize, moeIntermediateSize }: ExpertsDescription,
    module: string,
    names: { readonly gate: string; readonly up: string; readonly down: string },
  ): { readonly w13: SchemeKey; readonly w2: SchemeKey } {
    const gate = this.#schemeOf(`${module}.${names.gate}`, role, moeIntermediateSize, hiddenSize);
    const up = this.#schemeOf(`${module}.${names.up}`, role, moeIntermediateSize, hiddenSize);
    const w2 = this.#schemeOf(`${module}.${names.down}`, role, hiddenSize, moeIntermediateSize);
    if (gate !== up) {
      throw new MoeError(
        'MOE_UNSUPPORTED_QUANTIZATION',
        `${module}: ${names.gate} is ${gate} and ${names.up} is ${up}; both projections of an expert's input must have the same scheme.`,
        { module, gate, up },
      );
    }
    return { w13: gate, w2 };
  }

  #checkStacked(name: string, role: LayerRole, stored: SchemeKey): void {
    const module = `${name}.gate_up_proj`;
    const declared = this.#quantization.schemeOf(module);
    const isPlain = stored === 'bf16' || stored === 'f16';
    if (declared === stored || (isPlain && (declared === undefined || role === 'draft' || this.#quantization.mayBePlain(module)))) return;
    throw tensorError(
      this.checkpoint.find(module) ?? `${module}_blocks`,
      `it is stored as ${stored}, but the configuration says ${declared ?? 'that the module is not quantized'}`,
      { expected: declared ?? null, actual: stored },
    );
  }

  #checkNoFurtherExpert({ name, role, numExperts }: ExpertsDescription, gate: string): void {
    const further = ['weight', 'weight_packed']
      .map((suffix) => `${name}.${String(numExperts)}.${gate}.${suffix}`)
      .find((tensor) => this.checkpoint.has(tensor));
    if (further === undefined) return;
    this.#problems[role].push(
      tensorError(
        this.checkpoint.tensor(further),
        `config.json says that there are ${String(numExperts)} experts, but the file holds one more`,
        {
          expected: numExperts,
        },
      ),
    );
  }

  #checkBias({ name, outFeatures }: { readonly name: string; readonly outFeatures: number }, role: LayerRole, hasBias: boolean): void {
    const info = this.checkpoint.find(`${name}.bias`);
    let problem: MoeError | undefined;
    if (info === undefined && hasBias) problem = tensorError(`${name}.bias`, 'it is missing', { expected: [outFeatures], actual: null });
    if (info !== undefined && !hasBias) problem = tensorError(info, 'the configuration says that the module has no bias');
    if (info !== undefined && hasBias && (info.shape.length !== 1 || info.shape[0] !== outFeatures)) {
      problem = tensorError(info, `expected shape [${String(outFeatures)}] as the bias of the module, got [${info.shape.join(', ')}]`, {
        expected: [outFeatures],
        actual: info.shape,
      });
    }
    if (problem !== undefined) this.#problems[role].push(problem);
  }
}

function summarize(problems: readonly MoeError[]): MoeError | undefined {
  const [first] = problems;
  const unsupported = problems.find(({ code }) => code !== 'MOE_CHECKPOINT_TENSOR');
  if (unsupported !== undefined || problems.length <= 1) return unsupported ?? first;
  const shown = problems.slice(0, maxProblems).map(({ message }) => `  ${message}`);
  const heading = `${String(problems.length)} tensors do not fit the configuration${problems.length > maxProblems ? `; the first ${String(maxProblems)} are` : ''}:`;
  return new MoeError(
    'MOE_CHECKPOINT_TENSOR',
    [heading, ...shown].join('\n'),
    { ...first?.details, numProblems: problems.length, problems: problems.slice(0, maxProblems).map((problem) => problem.toJSON()) },
    { cause: first },
  );
}

function retain<T>(list: T[], keep: (item: T) => boolean): void {
  list.splice(0, list.length, ...list.filter(keep));
}
