import type { Arithmetic } from '../arithmetic.js';
import type { ExpertMatrices, ExpertsArgs, LinearArgs } from '../backend.js';
import { MoeError } from '../errors.js';
import type { Activation, ExpertGroupSpec, LinearSpec } from '../layer-spec.js';
import { roundToBf16 } from '../quant/bf16.js';
import { decodeWeights } from '../quant/decode-weights.js';
import { roundToF16 } from '../quant/f16.js';
import { SCHEME } from '../quant/quant-scheme.js';
import type { SchemeKey, SchemeRegistry } from '../quant/quant-scheme.js';
import { inputQuantizationOf, prepareInput, roundOnce } from './reference-input.js';

/**
 * The truth that kernels are judged by: the expert layer and the linear in float64, with the roundings that a rule declares and no others.
 *
 * Of an {@link Arithmetic} it executes `input`, `intermediate` and `output`. Sums are always float64: what a narrower accumulator
 * loses depends on the order of the sum, which is the kernel's own, so it belongs to the tolerance. So do requantized weights, whose new
 * values only the kernel knows.
 */

/** [rows, columns] float32: the stored values of a matrix. */
export type MatrixDecoder = (matrix: SchemeRegistry[SchemeKey]) => Float32Array;

export interface ReferenceExpertsCall extends Pick<ExpertsArgs, 'numTokens' | 'topK' | 'hiddenStates' | 'topkSlots' | 'topkWeights'> {
  readonly group: Pick<ExpertGroupSpec, 'name' | 'hiddenSize' | 'moeIntermediateSize' | 'activation' | 'schemes'>;
  readonly arithmetic: Arithmetic;
  /** By slot. Only the experts that the call chooses need be there. */
  readonly experts: readonly (ExpertMatrices | undefined)[];
  /** For schemes that the core cannot decode. */
  readonly decode?: MatrixDecoder;
}

/** What stands between the steps of an expert, per token and choice; rows of choices that are not in the group are zero. */
export interface ReferenceExpertsStages {
  /** [numTokens, topK, moeIntermediateSize], biases included, not rounded. */
  readonly gate: Float64Array;
  readonly up: Float64Array;
  /** [numTokens, topK, moeIntermediateSize]: activation(gate, up), rounded to the intermediate type. */
  readonly activation: Float32Array;
  /** [numTokens, hiddenSize]: what the group adds to the output, rounded to the output type. */
  readonly output: Float64Array;
}

/**
 * One call of an experts kernel.
 *
 * @returns [numTokens, hiddenSize]: what the group contributes. A kernel writes it, or adds it to the output when `accumulate`.
 * @throws {MoeError} MOE_UNSUPPORTED_LAYERS for an activation that the core does not know; MOE_PLUGIN_RULE where the arithmetic needs a
 * scale that the weights lack; MOE_INTERNAL for a slot without expert.
 */
export function referenceExperts(call: ReferenceExpertsCall): Float64Array {
  return referenceExpertsStages(call).output;
}

/** As {@link referenceExperts}, with everything in between. */
export function referenceExpertsStages(call: ReferenceExpertsCall): ReferenceExpertsStages {
  const { group, arithmetic, numTokens, topK, decode = decodeOnce } = call;
  const { hiddenSize, moeIntermediateSize } = group;
  const activate = activationFunction(group.activation, group.name);
  const choicesOfSlot = groupChoices(call);
  const numInner = numTokens * topK * moeIntermediateSize;
  const gateStage = new Float64Array(numInner);
  const upStage = new Float64Array(numInner);
  const innerStage = new Float64Array(numInner);
  const output = new Float64Array(numTokens * hiddenSize);

  for (const [slot, choices] of choicesOfSlot) {
    const { gate, up, bias } = expertIn(call, slot);
    const tokens = choices.map((choice) => Math.floor(choice / topK));
    const gateInput = inputOf(gate, arithmetic, call.hiddenStates, numTokens, tokens);
    const upInput = inputScaleOf(up) === inputScaleOf(gate) ? gateInput : inputOf(up, arithmetic, call.hiddenStates, numTokens, tokens);
    const gateRows = multiply(gateInput, decode(gate), gate, bias?.gate);
    const upRows = multiply(upInput, decode(up), up, bias?.up);
    choices.forEach((choice, row) => {
      for (let i = 0; i < moeIntermediateSize; i++) {
        const g = gateRows[row * moeIntermediateSize + i]!;
        const u = upRows[row * moeIntermediateSize + i]!;
        const at = choice * moeIntermediateSize + i;
        gateStage[at] = g;
        upStage[at] = u;
        innerStage[at] = activate(g, u);
      }
    });
  }

  const activation = roundOnce(innerStage, arithmetic.intermediate);
  for (const [slot, choices] of choicesOfSlot) {
    const { down, bias } = expertIn(call, slot);
    const rows = multiply(inputOf(down, arithmetic, activation, numTokens * topK, choices), decode(down), down, bias?.down);
    choices.forEach((choice, row) => {
      const weight = call.topkWeights[choice]!;
      const outputStart = Math.floor(choice / topK) * hiddenSize;
      for (let i = 0; i < hiddenSize; i++) {
        output[outputStart + i] = output[outputStart + i]! + weight * rows[row * hiddenSize + i]!;
      }
    });
  }
  roundOutput(output, arithmetic.output);
  return { gate: gateStage, up: upStage, activation, output };
}

export interface ReferenceLinearCall extends Pick<LinearArgs, 'numTokens' | 'input'> {
  readonly linear: Pick<LinearSpec, 'inFeatures' | 'outFeatures'>;
  readonly arithmetic: Arithmetic;
  /** In row order of the output. */
  readonly modules: readonly { readonly matrix: SchemeRegistry[SchemeKey]; readonly bias: Float32Array | undefined }[];
  readonly decode?: MatrixDecoder;
}

/**
 * One call of a linear kernel.
 *
 * @returns [numTokens, outFeatures]: what the linear contributes. A kernel writes it, or adds it to the output when `accumulate`.
 * @throws {MoeError} MOE_PLUGIN_RULE where the arithmetic needs a scale that the weights lack.
 */
export function referenceLinear(call: ReferenceLinearCall): Float64Array {
  const { linear, arithmetic, numTokens, modules, decode = decodeOnce } = call;
  const output = new Float64Array(numTokens * linear.outFeatures);
  const tokens = Array.from({ length: numTokens }, (_, token) => token);
  let firstColumn = 0;
  for (const { matrix, bias } of modules) {
    const rows = multiply(inputOf(matrix, arithmetic, call.input, numTokens, tokens), decode(matrix), matrix, bias);
    for (let token = 0; token < numTokens; token++) {
      output.set(rows.subarray(token * matrix.rows, (token + 1) * matrix.rows), token * linear.outFeatures + firstColumn);
    }
    firstColumn += matrix.rows;
  }
  roundOutput(output, arithmetic.output);
  return output;
}

/** activation(gate, up) as {@link Activation} defines it, in float64. */
export function activationFunction(activation: Activation, layerName: string): (gate: number, up: number) => number {
  switch (activation.type) {
    case 'silu':
      return (gate, up) => (gate / (1 + Math.exp(-gate))) * up;
    case 'swiglu': {
      const { alpha, limit } = activation;
      return (gate, up) => {
        const g = Math.min(gate, limit);
        const u = Math.max(-limit, Math.min(up, limit));
        return ((u + 1) * g) / (1 + Math.exp(-alpha * g));
      };
    }
    case 'other':
      throw new MoeError(
        'MOE_UNSUPPORTED_LAYERS',
        `${layerName} uses the activation "${activation.name}", which the reference does not know: it knows silu and swiglu.`,
        {
          layer: layerName,
          activation: activation.name,
        },
      );
  }
}

/** Slot → positions in topkSlots that chose it, in order. */
function groupChoices({ numTokens, topK, topkSlots }: ReferenceExpertsCall): Map<number, number[]> {
  const choicesOfSlot = new Map<number, number[]>();
  for (let choice = 0; choice < numTokens * topK; choice++) {
    const slot = topkSlots[choice]!;
    if (slot < 0) continue;
    const choices = choicesOfSlot.get(slot);
    if (choices === undefined) choicesOfSlot.set(slot, [choice]);
    else choices.push(choice);
  }
  return choicesOfSlot;
}

function expertIn({ experts, group }: ReferenceExpertsCall, slot: number): ExpertMatrices {
  const expert = experts[slot];
  if (expert !== undefined) return expert;
  throw new MoeError('MOE_INTERNAL', `${group.name}: a token chose slot ${String(slot)}, and the reference was given no expert there.`, {
    layer: group.name,
    slot,
  });
}

function inputScaleOf(matrix: SchemeRegistry[SchemeKey]): number | undefined {
  return 'inputScale' in matrix ? matrix.inputScale : undefined;
}

/** Rows `chosen` of `rows` [numRows, columns], as `matrix` is to see them. */
function inputOf(
  matrix: SchemeRegistry[SchemeKey],
  { input }: Arithmetic,
  rows: Float32Array,
  numRows: number,
  chosen: readonly number[],
): Float32Array {
  const scheme = matrix[SCHEME];
  const { columns } = matrix;
  const quantization = inputQuantizationOf(input, scheme);
  // One scale for the whole tensor looks at every row of the call; otherwise only the chosen rows matter.
  const isShared = quantization.type === 'fp8' && quantization.granularity === 'tensor' && quantization.scale === 'dynamic';
  if (isShared) return gatherRows(prepareInput(input, scheme, rows.subarray(0, numRows * columns), columns, undefined), columns, chosen);
  return prepareInput(input, scheme, gatherRows(rows, columns, chosen), columns, inputScaleOf(matrix));
}

function gatherRows(rows: Float32Array, columns: number, chosen: readonly number[]): Float32Array {
  const gathered = new Float32Array(chosen.length * columns);
  chosen.forEach((row, i) => {
    gathered.set(rows.subarray(row * columns, (row + 1) * columns), i * columns);
  });
  return gathered;
}

/** input [numRows, columns] times the transpose of weights [rows, columns], plus bias [rows]; all sums from column 0 upward. */
function multiply(
  input: Float32Array,
  weights: Float32Array,
  { rows, columns }: { readonly rows: number; readonly columns: number },
  bias: Float32Array | undefined,
): Float64Array {
  const numRows = input.length / columns;
  const output = new Float64Array(numRows * rows);
  let row = 0;
  for (; row + 4 <= numRows; row += 4) multiplyFourRows(input, weights, rows, columns, row, output);
  for (; row < numRows; row++) multiplyRow(input, weights, rows, columns, row, output);
  if (bias === undefined) return output;
  for (let i = 0; i < output.length; i++) output[i] = output[i]! + bias[i % rows]!;
  return output;
}

/** Loads a weight once for four rows, whose sums do not wait for each other: twice as fast as row by row. */
function multiplyFourRows(
  input: Float32Array,
  weights: Float32Array,
  rows: number,
  columns: number,
  row: number,
  output: Float64Array,
): void {
  const x0 = input.subarray(row * columns, (row + 1) * columns);
  const x1 = input.subarray((row + 1) * columns, (row + 2) * columns);
  const x2 = input.subarray((row + 2) * columns, (row + 3) * columns);
  const x3 = input.subarray((row + 3) * columns, (row + 4) * columns);
  for (let n = 0; n < rows; n++) {
    const start = n * columns;
    let sum0 = 0;
    let sum1 = 0;
    let sum2 = 0;
    let sum3 = 0;
    for (let k = 0; k < columns; k++) {
      const w = weights[start + k]!;
      sum0 += w * x0[k]!;
      sum1 += w * x1[k]!;
      sum2 += w * x2[k]!;
      sum3 += w * x3[k]!;
    }
    output[row * rows + n] = sum0;
    output[(row + 1) * rows + n] = sum1;
    output[(row + 2) * rows + n] = sum2;
    output[(row + 3) * rows + n] = sum3;
  }
}

/** Four weight rows at a time, for the same reason; every sum keeps its order, so a row's result does not depend on how many rows a call has. */
function multiplyRow(input: Float32Array, weights: Float32Array, rows: number, columns: number, row: number, output: Float64Array): void {
  const x = input.subarray(row * columns, (row + 1) * columns);
  const first = row * rows;
  let n = 0;
  for (; n + 4 <= rows; n += 4) {
    const w0 = weights.subarray(n * columns, (n + 1) * columns);
    const w1 = weights.subarray((n + 1) * columns, (n + 2) * columns);
    const w2 = weights.subarray((n + 2) * columns, (n + 3) * columns);
    const w3 = weights.subarray((n + 3) * columns, (n + 4) * columns);
    let sum0 = 0;
    let sum1 = 0;
    let sum2 = 0;
    let sum3 = 0;
    for (let k = 0; k < columns; k++) {
      const value = x[k]!;
      sum0 += w0[k]! * value;
      sum1 += w1[k]! * value;
      sum2 += w2[k]! * value;
      sum3 += w3[k]! * value;
    }
    output[first + n] = sum0;
    output[first + n + 1] = sum1;
    output[first + n + 2] = sum2;
    output[first + n + 3] = sum3;
  }
  for (; n < rows; n++) {
    const start = n * columns;
    let sum = 0;
    for (let k = 0; k < columns; k++) sum += weights[start + k]! * x[k]!;
    output[first + n] = sum;
  }
}

const decoded = new WeakMap<object, Float32Array>();

/** Decodes every matrix once, for as long as somebody holds it. */
function decodeOnce(matrix: SchemeRegistry[SchemeKey]): Float32Array {
  const known = decoded.get(matrix);
  if (known !== undefined) return known;
  const values = decodeWeights(matrix);
  decoded.set(matrix, values);
  return values;
}

/** Float32 needs no rounding here: comparing with the unrounded sum is the sharper test. */
function roundOutput(output: Float64Array, dtype: Arithmetic['output']): void {
  if (dtype === 'f32') return;
  const round = dtype === 'bf16' ? roundToBf16 : roundToF16;
  for (let i = 0; i < output.length; i++) output[i] = round(output[i]!);
}
