import type { ExpertMatrices, ExpertWeights, LinearWeights, PackContext, PackedWeights } from '../backend.js';
import { ReadBuffer } from '../checkpoint/read-buffer.js';
import { MoeError } from '../errors.js';
import type { ExpertGroupSpec, LinearSpec } from '../layer-spec.js';
import { SCHEME } from '../quant/quant-scheme.js';
import type { SchemeKey, SchemeRegistry } from '../quant/quant-scheme.js';
import { MatrixStack, matrixStackBytes } from './matrix-stack.js';
import type { MatrixOrder, MatrixStackShape } from './matrix-stack.js';

/**
 * Packing for backends whose layout is a {@link MatrixStack} each of w13 and w2, or of the modules of a linear: everything but the order of
 * rows and scales is the same for all of them, so it stands here once.
 */

/** A layout by its id, `<owner>/<name>@<version>`. */
export interface WeightLayout extends MatrixOrder {
  readonly id: string;
}

/** What `PackedWeights.handle` is for packed experts. */
export interface PackedExpertStacks {
  /** Stacks of gate and up, per slot. */
  readonly w13: MatrixStack;
  /** Stacks of down alone, per slot. */
  readonly w2: MatrixStack;
}

/** Bytes of a packed group. */
export function packedExpertsBytes(layout: MatrixOrder, group: ExpertGroupSpec): number {
  const { w13, w2 } = expertShapes(group, group.experts.length);
  return matrixStackBytes(w13, layout) + matrixStackBytes(w2, stackedRows(layout));
}

/** Bytes of one expert as the checkpoint has it: what {@link packExperts} holds beside the packed weights. */
export function expertSourceBytes(group: ExpertGroupSpec): number {
  const { w13, w2 } = expertShapes(group, 1);
  return matrixStackBytes(w13, asInCheckpoint) + matrixStackBytes(w2, asInCheckpoint);
}

/**
 * Packs a group expert by expert.
 *
 * @throws {MoeError} MOE_CHECKPOINT_TENSOR for a matrix of other sizes than the group says; MOE_DEVICE_MEMORY; what reading throws.
 */
export async function packExperts(
  layout: WeightLayout,
  group: ExpertGroupSpec,
  weights: ExpertWeights,
  { onProgress, signal }: PackContext,
): Promise<PackedWeights> {
  const { w13, w2 } = expertShapes(group, weights.numExperts);
  const stacks: PackedExpertStacks = allocated(group.name, packedExpertsBytes(layout, group), () => ({
    w13: new MatrixStack(w13, layout),
    w2: new MatrixStack(w2, stackedRows(layout)),
  }));
  const bytes = expertSourceBytes(group);
  const memory = new ReadBuffer();
  for (let slot = 0; slot < weights.numExperts; slot++) {
    signal?.throwIfAborted();
    const { gate, up, down, bias } = await weights.expert(slot, memory);
    const title = `${group.name}, slot ${slot}`;
    stacks.w13.put(`${title}, gate`, slot, 0, gate, bias?.gate);
    stacks.w13.put(`${title}, up`, slot, 1, up, bias?.up);
    stacks.w2.put(`${title}, down`, slot, 0, down, bias?.down);
    onProgress?.(bytes);
  }
  const schemes = [...new Set([group.schemes.w13, group.schemes.w2])];
  return packed(layout, schemes, stacks.w13.byteLength + stacks.w2.byteLength, stacks);
}

/** One expert in the checkpoint's format, bit for bit. @throws {MoeError} MOE_PLUGIN_BRAND for weights of another layout. */
export function unpackExpert<S extends SchemeKey>(
  layout: WeightLayout,
  group: ExpertGroupSpec,
  weights: PackedWeights,
  slot: number,
): ExpertMatrices<S> {
  const { w13, w2 } = expertStacks(layout, group.name, weights);
  const biases = [w13.bias(slot, 0), w13.bias(slot, 1), w2.bias(slot, 0)];
  const [gate, up, down] = biases;
  return {
    // Backends hand in groups of their own schemes, and a stack gives back the scheme it was given.
    gate: w13.matrix(slot, 0) as SchemeRegistry[S],
    up: w13.matrix(slot, 1) as SchemeRegistry[S],
    down: w2.matrix(slot, 0) as SchemeRegistry[S],
    ...(gate === undefined || up === undefined || down === undefined ? {} : { bias: { gate, up, down } }),
  };
}

/** The stacks inside packed experts. @throws {MoeError} MOE_PLUGIN_BRAND for weights of another layout. */
export function expertStacks(layout: WeightLayout, layer: string, weights: PackedWeights): PackedExpertStacks {
  checkLayout(layout, layer, weights);
  return weights.handle as PackedExpertStacks;
}

/** Bytes of a packed linear. */
export function packedLinearBytes(layout: MatrixOrder, linear: LinearSpec): number {
  return matrixStackBytes(linearShape(linear), layout);
}

/** Bytes of the largest module as the checkpoint has it: what {@link packLinear} holds beside the packed weights. */
export function moduleSourceBytes(linear: LinearSpec): number {
  const shape = linearShape(linear);
  return Math.max(...shape.partRows.map((rows) => matrixStackBytes({ ...shape, partRows: [rows] }, asInCheckpoint)));
}

/** Packs a linear module by module. Modules of one fusion may differ in having a bias: one of zeros adds nothing. @throws as {@link packExperts}. */
export async function packLinear(
  layout: WeightLayout,
  linear: LinearSpec,
  weights: LinearWeights,
  { onProgress, signal }: PackContext,
): Promise<PackedWeights> {
  const shape = linearShape(linear);
  const stack = allocated(linear.name, matrixStackBytes(shape, layout), () => new MatrixStack(shape, layout));
  for (const [index, module] of linear.modules.entries()) {
    signal?.throwIfAborted();
    const { matrix, bias } = await weights.module(index);
    const added = linear.hasBias ? (bias ?? new Float32Array(module.outFeatures)) : bias;
    stack.put(module.name, 0, index, matrix, added);
    onProgress?.(matrixStackBytes({ ...shape, partRows: [module.outFeatures] }, asInCheckpoint));
  }
  return packed(layout, [linear.scheme], stack.byteLength, stack);
}

/** All modules in the checkpoint's format, bit for bit. @throws {MoeError} MOE_PLUGIN_BRAND for weights of another layout. */
export function unpackLinear(layout: WeightLayout, linear: LinearSpec, weights: PackedWeights): readonly SchemeRegistry[SchemeKey][] {
  const stack = linearStack(layout, linear.name, weights);
  return linear.modules.map((_, index) => stack.matrix(0, index));
}

/** The stack inside a packed linear. @throws {MoeError} MOE_PLUGIN_BRAND for weights of another layout. */
export function linearStack(layout: WeightLayout, layer: string, weights: PackedWeights): MatrixStack {
  checkLayout(layout, layer, weights);
  return weights.handle as MatrixStack;
}

const asInCheckpoint: MatrixOrder = { rows: 'stacked', blockScales: 'row-major' };

/** down stands alone in its stack, so there is nothing to interleave. */
function stackedRows({ blockScales }: MatrixOrder): MatrixOrder {
  return { rows: 'stacked', blockScales };
}

function expertShapes(
  { schemes, hiddenSize, moeIntermediateSize, hasBias }: ExpertGroupSpec,
  numStacks: number,
): { readonly w13: MatrixStackShape; readonly w2: MatrixStackShape } {
  return {
    w13: { scheme: schemes.w13, numStacks, partRows: [moeIntermediateSize, moeIntermediateSize], columns: hiddenSize, hasBias },
    w2: { scheme: schemes.w2, numStacks, partRows: [hiddenSize], columns: moeIntermediateSize, hasBias },
  };
}

function linearShape({ scheme, modules, inFeatures, hasBias }: LinearSpec): MatrixStackShape {
  return { scheme, numStacks: 1, partRows: modules.map(({ outFeatures }) => outFeatures), columns: inFeatures, hasBias };
}

function packed({ id }: WeightLayout, schemes: readonly string[], residentBytes: number, handle: unknown): PackedWeights {
  // The buffers are ordinary ones: they go when the last reference to the object goes.
  return { layout: id, [SCHEME]: schemes, residentBytes, handle, dispose: () => undefined };
}

function allocated<T>(layer: string, bytes: number, allocate: () => T): T {
  try {
    return allocate();
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new MoeError(
      'MOE_DEVICE_MEMORY',
      `${layer}: no ${bytes} bytes can be allocated for its packed weights. Use a machine with more memory, or a smaller checkpoint.`,
      { layer, bytes },
      { cause: error },
    );
  }
}

function checkLayout({ id }: WeightLayout, layer: string, { layout }: PackedWeights): void {
  if (layout === id) return;
  throw new MoeError('MOE_PLUGIN_BRAND', `${layer}: its kernels read the layout ${id}, the packed weights have ${layout}.`, {
    layer,
    expected: id,
    actual: layout,
  });
}
