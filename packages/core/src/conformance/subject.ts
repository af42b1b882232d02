import type { Arithmetic } from '../arithmetic.js';
import type { ExpertsArgs, Footprint, Kernel, LinearArgs, PackedWeights } from '../backend.js';
import type { Tolerance } from '../reference/tolerance.js';
import { expectSameBits, expectThat } from './comparison.js';
import type { StoredCopy } from './stored-copy.js';

/** One call of either kind of kernel. A linear has topK 0 and no slots. */
export interface SubjectCall {
  readonly numTokens: number;
  /** [numTokens, width of the input] */
  readonly rows: Float32Array;
  readonly topK: number;
  readonly topkSlots: Int32Array;
  readonly topkWeights: Float32Array;
}

/** A layer packed by a backend, with a kernel on it: what the cases are run on. */
export interface Subject {
  /** Layer, rule, scheme and seed, for messages. */
  readonly context: string;
  readonly inputWidth: number;
  readonly outputWidth: number;
  readonly arithmetic: Arithmetic;
  readonly schemes: readonly string[];
  readonly layout: string;
  readonly packed: PackedWeights;
  readonly kernel: Kernel;
  readonly footprint: Footprint;
  /** Bytes that the codes of all weights take in the checkpoint, scales left out. */
  readonly codeBytes: number;
  readonly maxNumTokens: number;
  readonly reference: (call: SubjectCall) => Float64Array;
  readonly tolerance: (call: SubjectCall) => Tolerance;
  /** Calls the kernel's entry. */
  readonly invoke: (kernel: Kernel, call: SubjectCall, output: Float32Array, accumulate: boolean) => Promise<void>;
  /** Undefined where the backend does not store packed weights. */
  readonly stored: StoredCopy | undefined;
  /** @param packed - other weights of the same layer; left out = the subject's. */
  readonly createKernel: (packed?: PackedWeights) => Promise<Kernel>;
  /** Throws where `unpack` does not give the weights back. @param packed - as for `createKernel`. */
  readonly expectUnpacked: (packed?: PackedWeights) => void;
}

/** Calls native kernels, which only an executor can: the engine's CPU device, or an addon made for tests. */
export interface NativeRunner {
  readonly runExperts?: (kernel: Kernel, args: ExpertsArgs) => Promise<void> | void;
  readonly runLinear?: (kernel: Kernel, args: LinearArgs) => Promise<void> | void;
}

/** Marks memory that a kernel has no business with. */
const guard = 12345.678;

/**
 * Runs a kernel in buffers that are one row longer than used: the extra input row is NaN, the extra output row must come back as it was.
 *
 * @param before - [numTokens, outputWidth]: what to add to; left out = overwrite, in a buffer full of NaN.
 * @returns [numTokens, outputWidth]
 */
export async function runSubject(
  subject: Subject,
  call: SubjectCall,
  before?: Float32Array,
  kernel: Kernel = subject.kernel,
): Promise<Float32Array> {
  const { inputWidth, outputWidth } = subject;
  const rows = new Float32Array((call.numTokens + 1) * inputWidth).fill(NaN);
  rows.set(call.rows);
  const length = call.numTokens * outputWidth;
  const output = new Float32Array(length + outputWidth).fill(guard, length);
  output.fill(NaN, 0, length);
  if (before !== undefined) output.set(before);
  await subject.invoke(kernel, { ...call, rows }, output, before !== undefined);
  expectThat(
    output.subarray(length).every((value) => value === Math.fround(guard)),
    `${subject.context}: the kernel wrote past the ${String(call.numTokens)} rows of its output.`,
  );
  expectSameBits(rows.subarray(0, call.rows.length), call.rows, `${subject.context}: the input, which a kernel must not change`);
  return output.slice(0, length);
}

/** The call with only the given tokens, in the given order. */
export function selectTokens(call: SubjectCall, inputWidth: number, tokens: readonly number[]): SubjectCall {
  const { topK } = call;
  const rows = new Float32Array(tokens.length * inputWidth);
  const topkSlots = new Int32Array(tokens.length * topK);
  const topkWeights = new Float32Array(tokens.length * topK);
  tokens.forEach((token, i) => {
    rows.set(call.rows.subarray(token * inputWidth, (token + 1) * inputWidth), i * inputWidth);
    topkSlots.set(call.topkSlots.subarray(token * topK, (token + 1) * topK), i * topK);
    topkWeights.set(call.topkWeights.subarray(token * topK, (token + 1) * topK), i * topK);
  });
  return { numTokens: tokens.length, rows, topK, topkSlots, topkWeights };
}
