import type { Arithmetic } from '../arithmetic.js';
import type { ExpertMatrices, Kernel, LinearWeights } from '../backend.js';
import type { ExpertGroupSpec, LinearSpec } from '../layer-spec.js';
import { SCHEME, schemeInfo, type SchemeKey, type SchemeRegistry } from '../quant/quant-scheme.js';
import { Random } from '../random.js';
import { measureError } from '../reference/error-figures.js';
import { referenceExperts, referenceLinear } from '../reference/reference-layers.js';
import { toleranceFor, type RoundedCounts } from '../reference/tolerance.js';
import type { KernelRunner } from './kernel-runner.js';
import { copyRows, edgeRows } from './matrix-rows.js';

/** How far a kernel's output lies from the reference, and how far it may. */
export interface KernelFigures {
  /** sum of (output − reference)² / sum of reference². */
  readonly nmse: number;
  readonly allowedNmse: number;
  /** Largest |output − reference| over the root mean square of the reference. */
  readonly maxError: number;
  readonly allowedMaxError: number;
  /** `token 1, column 17: expected 0.25, got NaN`. */
  readonly worst: string;
}

/**
 * A few weights of a layer, copied while they are packed, so that nothing is read twice and whatever packing does to them shows. The reference
 * computes from these copies, the kernel from what was packed.
 */
export interface LayerSample<Part> {
  /** Sees every part of the layer in the order in which they are read. */
  readonly take: (index: number, part: Part) => void;
  /**
   * Runs the kernel on `numTokens` rows and compares.
   *
   * @throws whatever the runner throws.
   */
  readonly compare: (kernel: Kernel, arithmetic: Arithmetic, numTokens: number, runner: KernelRunner) => Promise<KernelFigures>;
}

/**
 * Factor on the mean square that `toleranceFor` allows. It is derived for normal rows and weights; in a trained layer a few numbers can carry most of
 * an output, and one of them that rounds to the other side counts for more. A kernel that computes something else is off by a hundred thousand
 * times that; how exact a right one is, is for the conformance suite to judge.
 */
const realLayerFactor = 16;

const seed = 20;

/** The first and the last expert of a group, and three tokens that choose them: together, and each alone. */
export class ExpertsSample implements LayerSample<ExpertMatrices> {
  readonly #group: ExpertGroupSpec;
  readonly #slots: readonly number[];
  readonly #experts: (ExpertMatrices | undefined)[];

  constructor(group: ExpertGroupSpec) {
    this.#group = group;
    this.#slots = [...new Set([0, group.experts.length - 1])];
    this.#experts = group.experts.map(() => undefined);
  }

  readonly take = (slot: number, { gate, up, down, bias }: ExpertMatrices): void => {
    if (!this.#slots.includes(slot)) return;
    const copied = { gate: copyOf(gate), up: copyOf(up), down: copyOf(down) };
    const biases = bias && { gate: bias.gate.slice(), up: bias.up.slice(), down: bias.down.slice() };
    this.#experts[slot] = { ...copied, ...(biases === undefined ? {} : { bias: biases }) };
  };

  readonly compare = async (kernel: Kernel, arithmetic: Arithmetic, numTokens: number, runner: KernelRunner): Promise<KernelFigures> => {
    const group = this.#group;
    const { hiddenSize, moeIntermediateSize, topK, schemes } = group;
    const [first = 0, last = first] = this.#slots;
    const choices = [topK > 1 && last !== first ? [first, last] : [first], [last], [first]];
    const topkSlots = new Int32Array(numTokens * topK).fill(-1);
    // Tokens beyond the third choose nobody: a rule for long calls gets one, and the reference stays cheap.
    choices.slice(0, numTokens).forEach((slots, token) => {
      topkSlots.set(slots, token * topK);
    });
    const numChoices = topkSlots.filter((slot) => slot >= 0).length;
    const call = {
      numTokens,
      topK,
      hiddenStates: randomRows(numTokens, hiddenSize, this.#experts[first]?.gate),
      topkSlots,
      topkWeights: Float32Array.from(topkSlots, (_, choice) => 0.75 - 0.25 * (choice % topK === 0 ? 0 : 1)),
    };
    const output = await runner.runExperts(kernel, group, call);
    const expected = referenceExperts({ ...call, group, arithmetic, experts: this.#experts });
    return figuresOf(output, expected, hiddenSize, { first: schemes.w13, second: schemes.w2 }, arithmetic, {
      inputs: numChoices * hiddenSize,
      intermediates: numChoices * moeIntermediateSize,
      outputs: Math.min(numTokens, choices.length) * hiddenSize,
      columns: Math.max(hiddenSize, moeIntermediateSize),
    });
  };
}

type LinearModule = Awaited<ReturnType<LinearWeights['module']>>;

/** Rows per end of a module that are compared. */
const rowsPerEdge = 16;

/** The first and the last rows of every module: of a vocabulary projection the whole would be gigabytes, decoded. */
export class LinearSample implements LayerSample<LinearModule> {
  readonly #linear: LinearSpec;
  readonly #rows: { readonly column: number; readonly matrix: SchemeRegistry[SchemeKey]; readonly bias: Float32Array | undefined }[] = [];

  constructor(linear: LinearSpec) {
    this.#linear = linear;
  }

  readonly take = (index: number, { matrix, bias }: LinearModule): void => {
    const begin = this.#linear.modules.slice(0, index).reduce((sum, { outFeatures }) => sum + outFeatures, 0);
    for (const [first, count] of edgeRows(matrix.rows, rowsPerEdge)) {
      const part = { column: begin + first, matrix: copyRows(matrix, first, count), bias: bias?.slice(first, first + count) };
      // A second layout reads the weights again.
      const known = this.#rows.findIndex(({ column }) => column === part.column);
      if (known < 0) this.#rows.push(part);
    }
  };

  readonly compare = async (kernel: Kernel, arithmetic: Arithmetic, numTokens: number, runner: KernelRunner): Promise<KernelFigures> => {
    const linear = this.#linear;
    const { inFeatures, scheme } = linear;
    const numColumns = this.#rows.reduce((sum, { matrix }) => sum + matrix.rows, 0);
    const call = { numTokens, input: randomRows(numTokens, inFeatures, this.#rows[0]?.matrix) };
    const output = await runner.runLinear(kernel, linear, call);
    const expected = referenceLinear({ ...call, linear: { inFeatures, outFeatures: numColumns }, arithmetic, modules: this.#rows });
    const columns = this.#rows.flatMap(({ column, matrix }) => Array.from({ length: matrix.rows }, (_, row) => column + row));
    const compared = Float32Array.from(expected, (_, i) => {
      return output[Math.floor(i / numColumns) * linear.outFeatures + (columns[i % numColumns] ?? NaN)] ?? NaN;
    });
    const counts = { inputs: numTokens * inFeatures, intermediates: 0, outputs: numTokens * numColumns, columns: inFeatures };
    return figuresOf(compared, expected, numColumns, { first: scheme }, arithmetic, counts, columns);
  };
}

/** @param columns - of the output, where only some were compared. */
function figuresOf(
  output: Float32Array,
  expected: Float64Array,
  width: number,
  schemes: { readonly first: string; readonly second?: string },
  arithmetic: Arithmetic,
  counts: RoundedCounts,
  columns?: readonly number[],
): KernelFigures {
  const tolerance = toleranceFor(schemes, arithmetic, counts);
  const { nmse, maxError, worstIndex } = measureError(output, expected);
  const column = worstIndex % width;
  return {
    nmse,
    allowedNmse: realLayerFactor * tolerance.nmse,
    maxError,
    allowedMaxError: Math.sqrt(realLayerFactor) * tolerance.maxError,
    worst:
      `token ${Math.floor(worstIndex / width)}, column ${columns?.[column] ?? column}: ` +
      `expected ${expected[worstIndex]?.toPrecision(6) ?? 'nothing'}, got ${output[worstIndex]?.toPrecision(6) ?? 'nothing'}`,
  };
}

function copyOf(matrix: SchemeRegistry[SchemeKey]): SchemeRegistry[SchemeKey] {
  return copyRows(matrix, 0, matrix.rows);
}

/** Normal rows, as large as the calibrated scale of their reader expects: its largest value is six deviations out. */
function randomRows(numRows: number, width: number, reader: SchemeRegistry[SchemeKey] | undefined): Float32Array {
  const random = new Random(seed);
  const deviation = reader === undefined ? 1 : calibratedAmax(reader) / 6;
  return Float32Array.from({ length: numRows * width }, () => random.normal() * deviation);
}

/** Largest input that a static scale covers; 6 where there is none. */
function calibratedAmax(matrix: SchemeRegistry[SchemeKey]): number {
  const scale = 'inputScale' in matrix ? matrix.inputScale : undefined;
  const input = schemeInfo(matrix[SCHEME])?.input;
  if (scale === undefined || input === undefined || !(scale > 0)) return 6;
  return scale * (input.type === 'nvfp4' ? 448 * 6 : 448);
}
