import type { ExpertGroupSpec, Kernel, LinearSpec } from '@moe-server/core';
import { singleRank } from '@moe-server/core';
import type { BufferRef } from '../../src/device/commands.js';
import type { WeightSource } from '../../src/layers/weights.js';

/** Matrices of float32 by module name, [rows][columns], each with a plain kernel. */
export function plainWeights(matrices: Readonly<Record<string, readonly (readonly number[])[]>>): WeightSource {
  const rowsOf = (name: string): readonly (readonly number[])[] => {
    const rows = matrices[name];
    if (rows === undefined) throw new RangeError(`there is no ${name}`);
    return rows;
  };
  const constant = (_label: string, values: Float32Array | Int32Array): BufferRef => ({
    buffer: values.slice().buffer,
    byteOffset: 0,
    byteLength: values.byteLength,
  });
  const floats = (name: string): Promise<BufferRef> =>
    Promise.resolve(constant(name, Float32Array.from(rowsOf(name.replace(/\.weight$/, '')).flat())));
  return {
    constant,
    vector: floats,
    matrix: floats,
    table: () => Promise.reject(new RangeError('no tables here')),
    experts: () => Promise.reject(new RangeError('no experts here')),
    linear: (modules) => {
      const rows = modules.flatMap(rowsOf);
      const spec: LinearSpec = {
        kind: 'linear',
        name: modules.join('+'),
        role: 'target',
        layerIndex: 0,
        scheme: 'bf16',
        modules: modules.map((name) => ({ name, outFeatures: rowsOf(name).length })),
        inFeatures: rows[0]?.length ?? 0,
        outFeatures: rows.length,
        hasBias: false,
        parallel: singleRank,
      };
      return Promise.resolve({ spec, kernels: [{ kernel: matrixKernel(rows), tokens: { min: 1, max: Infinity } }] });
    },
  };
}

/** y = x W^T. */
export function matrixKernel(rows: readonly (readonly number[])[]): Kernel {
  const width = rows[0]?.length ?? 0;
  return {
    entry: {
      type: 'js-linear',
      run: ({ numTokens, input, output, accumulate }) => {
        for (let t = 0; t < numTokens; t++) {
          for (const [n, row] of rows.entries()) {
            const dot = row.reduce((sum, weight, k) => sum + weight * (input[t * width + k] ?? 0), 0);
            output[t * rows.length + n] = dot + (accumulate ? (output[t * rows.length + n] ?? 0) : 0);
          }
        }
      },
    },
    workspaceBytes: () => 0,
    dispose: () => undefined,
  };
}

/** A group of experts that each add `gain[slot]` times their input. */
export function scalingExperts(
  group: Pick<ExpertGroupSpec, 'name' | 'experts' | 'numExperts' | 'hiddenSize' | 'topK'>,
  gains: readonly number[],
): { group: ExpertGroupSpec; kernel: Kernel } {
  const { hiddenSize } = group;
  const kernel: Kernel = {
    entry: {
      type: 'js-experts',
      run: ({ numTokens, topK, hiddenStates, topkSlots, topkWeights, output }) => {
        for (let i = 0; i < numTokens * topK; i++) {
          const gain = gains[topkSlots[i] ?? -1];
          if (gain === undefined) continue;
          const row = Math.floor(i / topK) * hiddenSize;
          for (let k = row; k < row + hiddenSize; k++) output[k] = (output[k] ?? 0) + (topkWeights[i] ?? 0) * gain * (hiddenStates[k] ?? 0);
        }
      },
    },
    workspaceBytes: () => 0,
    dispose: () => undefined,
  };
  const whole: ExpertGroupSpec = {
    ...group,
    kind: 'moe',
    role: 'target',
    layerIndex: 0,
    schemes: { w13: 'bf16', w2: 'bf16' },
    moeIntermediateSize: 1,
    activation: { type: 'silu' },
    hasBias: false,
    routing: {
      score: 'softmax',
      order: 'score-first',
      renormalize: true,
      numGroups: 1,
      topkGroups: 1,
      hasCorrectionBias: false,
      hasRouterBias: false,
      scalingFactor: 1,
    },
    parallel: singleRank,
  };
  return { group: whole, kernel };
}
