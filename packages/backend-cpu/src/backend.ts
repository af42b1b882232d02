import { availableParallelism } from 'node:os';
import type {
  Arithmetic,
  DeviceInfo,
  ExpertGroupSpec,
  ExpertMatrices,
  ExpertSupportRule,
  ExpertWeights,
  Footprint,
  Kernel,
  KernelContext,
  LinearBackend,
  LinearSpec,
  LinearSupportRule,
  LinearWeights,
  MoeBackend,
  PackContext,
  PackedWeights,
  SchemeKey,
} from '@moe-server/core';
import { MoeError, isMoeError, messageOf } from '@moe-server/core';
import type { CpuAddon, InputKind, KernelExternal, WeightsExternal } from './addon.js';
import { cpuAddon } from './addon.js';
import { expertsWorkspaceBytes, linearWorkspaceBytes } from './footprint.js';
import type { CpuScheme } from './formats.js';
import { formatOf, inputKindOf, isCpuScheme, packedBytes } from './formats.js';
import { packedStorage } from './packed-storage.js';
import type { PackUnit } from './packed-weights.js';
import { allocateWeights, handleOf, maxUnitsInFlight, packUnits } from './packed-weights.js';
import { cacheRefusal, expertRules, instructionSetOf, linearRules, priorityOf } from './support.js';
import type { CpuMatrix, MatrixNotes } from './weights.js';
import { matricesOf, packable, restored } from './weights.js';

/** Experts on the CPU, of every scheme that the core knows. */
export class CpuMoeBackend implements MoeBackend<CpuScheme> {
  readonly kind = 'moe';
  readonly name = 'cpu';
  readonly rules = expertRules;

  readonly priority = (group: ExpertGroupSpec, rule: ExpertSupportRule<CpuScheme>): number =>
    priorityOf(cpuScheme(group.schemes.w13), rule);

  readonly missing = missingAddon;

  readonly footprint = (group: ExpertGroupSpec, rule: ExpertSupportRule<CpuScheme>): Footprint => {
    const { experts } = group;
    const residentBytes = expertsBytes(group);
    return {
      residentBytes,
      // As many experts as packUnits has in flight at most, in the checkpoint's form, which is not larger than the packed one.
      preparePeakBytes: (residentBytes / experts.length) * Math.min(experts.length, maxUnitsInFlight),
      workspaceBytes: (numTokens) =>
        expertsWorkspaceBytes(group, kernelInput(cpuScheme(group.schemes.w13), rule), numTokens, availableParallelism()),
    };
  };

  readonly pack = async (
    group: ExpertGroupSpec,
    _rule: ExpertSupportRule<CpuScheme>,
    weights: ExpertWeights<CpuScheme>,
    context: PackContext,
  ): Promise<PackedWeights> => {
    const addon = cpuAddon();
    const { name, hiddenSize, moeIntermediateSize, hasBias } = group;
    const { numExperts } = weights;
    const external = allocateExperts(addon, group);
    const units = Array.from({ length: numExperts }, (_, slot): PackUnit => ({
      firstMatrix: 3 * slot,
      read: async (into) =>
        matricesOf(await weights.expert(slot, into)).map(({ projection, matrix, bias }) => {
          const title = `${name}, slot ${slot}, ${projection}`;
          const [rows, columns] = projection === 'down' ? [hiddenSize, moeIntermediateSize] : [moeIntermediateSize, hiddenSize];
          return { name: title, matrix: packable(title, matrix, rows, columns, biasOf(title, hasBias, bias)) };
        }),
    }));
    return packUnits(addon, external, units, [...new Set([group.schemes.w13, group.schemes.w2])], context);
  };

  readonly storage = packedStorage<ExpertGroupSpec>({
    allocate: allocateExperts,
    schemes: ({ schemes: { w13, w2 }, experts }) => experts.flatMap(() => [cpuScheme(w13), cpuScheme(w13), cpuScheme(w2)]),
  });

  readonly unpack = (group: ExpertGroupSpec, packed: PackedWeights, slot: number): ExpertMatrices<CpuScheme> => {
    const { weights, notes } = handleOf(group.name, packed);
    const [gate, up, down] = [0, 1, 2].map((i) => {
      const unpacked = cpuAddon().unpackMatrix(weights, 3 * slot + i);
      return { matrix: restored(notesAt(group.name, notes, 3 * slot + i), unpacked), bias: unpacked.bias };
    });
    if (gate === undefined || up === undefined || down === undefined) throw new TypeError('an expert has three matrices');
    return {
      gate: gate.matrix,
      up: up.matrix,
      down: down.matrix,
      ...(group.hasBias ? { bias: { gate: gate.bias, up: up.bias, down: down.bias } } : {}),
    };
  };

  readonly createKernel = (
    group: ExpertGroupSpec,
    rule: ExpertSupportRule<CpuScheme>,
    packed: PackedWeights,
    context: KernelContext,
  ): Promise<Kernel> =>
    wrapped(context.device, () => {
      const { weights, notes } = handleOf(group.name, packed);
      const { activation, topK } = group;
      if (activation.type === 'other') throw new TypeError(`no rule covers the activation "${activation.name}"`);
      return cpuAddon().createExpertsKernel(weights, {
        ...kernelOptions(group.name, cpuScheme(group.schemes.w13), rule, notes),
        topK,
        activation,
      });
    });
}

/** Linears on the CPU: dense layers, shared experts, projections, the vocabulary. */
export class CpuLinearBackend implements LinearBackend<CpuScheme> {
  readonly kind = 'linear';
  readonly name = 'cpu';
  readonly rules = linearRules;

  readonly priority = (linear: LinearSpec, rule: LinearSupportRule<CpuScheme>): number => priorityOf(cpuScheme(linear.scheme), rule);

  readonly refuse = cacheRefusal;

  readonly missing = missingAddon;

  readonly footprint = (linear: LinearSpec, rule: LinearSupportRule<CpuScheme>): Footprint => {
    const residentBytes = linearBytes(linear);
    return {
      residentBytes,
      preparePeakBytes: residentBytes,
      workspaceBytes: (numTokens) => linearWorkspaceBytes(linear, kernelInput(cpuScheme(linear.scheme), rule), numTokens),
    };
  };

  readonly pack = async (
    linear: LinearSpec,
    _rule: LinearSupportRule<CpuScheme>,
    weights: LinearWeights<CpuScheme>,
    context: PackContext,
  ): Promise<PackedWeights> => {
    const addon = cpuAddon();
    const { modules, inFeatures, hasBias } = linear;
    const external = allocateLinear(addon, linear);
    const units = modules.map((module, index): PackUnit => ({
      firstMatrix: index,
      read: async (into) => {
        const { matrix, bias } = await weights.module(index, into);
        // Modules of one fusion may differ in having a bias: one of zeros adds nothing.
        const added = hasBias ? (bias ?? new Float32Array(module.outFeatures)) : biasOf(module.name, false, bias);
        return [{ name: module.name, matrix: packable(module.name, matrix, module.outFeatures, inFeatures, added) }];
      },
    }));
    return packUnits(addon, external, units, [linear.scheme], context);
  };

  readonly storage = packedStorage<LinearSpec>({
    allocate: allocateLinear,
    schemes: ({ scheme, modules }) => modules.map(() => cpuScheme(scheme)),
  });

  readonly unpack = (linear: LinearSpec, packed: PackedWeights): readonly CpuMatrix[] => {
    const { weights, notes } = handleOf(linear.name, packed);
    return linear.modules.map((_, i) => restored(notesAt(linear.name, notes, i), cpuAddon().unpackMatrix(weights, i)));
  };

  readonly createKernel = (
    linear: LinearSpec,
    rule: LinearSupportRule<CpuScheme>,
    packed: PackedWeights,
    context: KernelContext,
  ): Promise<Kernel> =>
    wrapped(context.device, () => {
      const { weights, notes } = handleOf(linear.name, packed);
      return cpuAddon().createLinearKernel(weights, kernelOptions(linear.name, cpuScheme(linear.scheme), rule, notes));
    });
}

/** @throws {MoeError} MOE_DEVICE_MEMORY */
function allocateExperts(addon: CpuAddon, group: ExpertGroupSpec): WeightsExternal {
  const { name, hiddenSize, moeIntermediateSize, hasBias, experts } = group;
  const format = formatOf(cpuScheme(group.schemes.w13));
  return allocateWeights(name, expertsBytes(group), () =>
    addon.createExpertWeights({ format, hiddenSize, moeIntermediateSize, numExperts: experts.length, hasBias }),
  );
}

/** @throws {MoeError} MOE_DEVICE_MEMORY */
function allocateLinear(addon: CpuAddon, linear: LinearSpec): WeightsExternal {
  const { name, modules, inFeatures, hasBias } = linear;
  const format = formatOf(cpuScheme(linear.scheme));
  const outFeatures = Int32Array.from(modules, (module) => module.outFeatures);
  return allocateWeights(name, linearBytes(linear), () => addon.createLinearWeights({ format, inFeatures, outFeatures, hasBias }));
}

/** Packed bytes of a group. */
function expertsBytes({ schemes, hiddenSize, moeIntermediateSize, hasBias, experts }: ExpertGroupSpec): number {
  const format = formatOf(cpuScheme(schemes.w13));
  const upBytes = packedBytes(format, moeIntermediateSize, hiddenSize, hasBias);
  return experts.length * (2 * upBytes + packedBytes(format, hiddenSize, moeIntermediateSize, hasBias));
}

/** Packed bytes of a linear. */
function linearBytes({ scheme, modules, inFeatures, hasBias }: LinearSpec): number {
  const format = formatOf(cpuScheme(scheme));
  return modules.reduce((sum, { outFeatures }) => sum + packedBytes(format, outFeatures, inFeatures, hasBias), 0);
}

/** The oracle hands a backend only schemes of its rules. */
function cpuScheme(scheme: SchemeKey): CpuScheme {
  if (!isCpuScheme(scheme)) throw new TypeError(`the cpu backend has no rule for the scheme "${String(scheme)}"`);
  return scheme;
}

function kernelInput(scheme: CpuScheme, { arithmetic: { input } }: { readonly arithmetic: Arithmetic }): InputKind {
  if (input.type !== 'float') return inputKindOf(scheme);
  return input.dtype === 'bf16' ? 'bf16' : 'float';
}

function notesAt(name: string, notes: readonly MatrixNotes[], index: number): MatrixNotes {
  const found = notes[index];
  if (found === undefined) throw new RangeError(`${name} has no matrix ${index}`);
  return found;
}

function biasOf(name: string, hasBias: boolean, bias: Float32Array | undefined): Float32Array | undefined {
  if (hasBias === (bias !== undefined)) return bias;
  throw new MoeError(
    'MOE_CHECKPOINT_TENSOR',
    `${name}: ${hasBias ? 'a bias was expected, there is none' : 'there is a bias, none was expected'}.`,
    {
      matrix: name,
    },
  );
}

/** Sentence of the addon's error, so that a plan can be made without it. */
function missingAddon(): string | undefined {
  try {
    cpuAddon();
    return undefined;
  } catch (error) {
    return messageOf(error);
  }
}

function kernelOptions(
  layer: string,
  scheme: CpuScheme,
  rule: { readonly id: string; readonly arithmetic: Arithmetic },
  notes: readonly MatrixNotes[],
): Parameters<CpuAddon['createLinearKernel']>[1] {
  const input = kernelInput(scheme, rule);
  const isStatic = input === 'nvfp4' || input === 'fp8-static';
  const inputScales = Float32Array.from(isStatic ? notes : [], ({ inputScale }, matrix) => {
    if (inputScale !== undefined && Number.isFinite(inputScale) && inputScale > 0) return inputScale;
    throw new MoeError(
      'MOE_CHECKPOINT_TENSOR',
      `${layer}: matrix ${matrix} has ${inputScale === undefined ? 'no input scale' : `the input scale ${inputScale}`}, which ${scheme} needs to quantize inputs. ` +
        'Use --numerics wider to leave inputs as they are.',
      { layer, matrix, inputScale },
    );
  });
  return { name: `cpu/${rule.id}`, isa: instructionSetOf(rule.id), input, inputScales };
}

/** Makes a kernel and the contract's object around it. */
function wrapped(device: DeviceInfo, create: () => KernelExternal): Promise<Kernel> {
  return Promise.resolve().then(() => {
    const addon = cpuAddon();
    const external = creating(create);
    const numThreads = device.type === 'cpu' ? device.numThreads : 1;
    return {
      entry: { type: 'native', external },
      workspaceBytes: (numTokens) => addon.workspaceBytes(external, numTokens, numThreads),
      dispose: () => {
        addon.disposeKernel(external);
      },
    };
  });
}

function creating(create: () => KernelExternal): KernelExternal {
  try {
    return create();
  } catch (error) {
    if (isMoeError(error)) throw error;
    throw new MoeError('MOE_DEVICE_KERNEL', `The cpu backend could not make a kernel: ${messageOf(error)}.`, {}, { cause: error });
  }
}
