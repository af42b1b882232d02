import type { Kernel } from '../backend.js';
import type { DeviceInfo } from '../device-info.js';
import type { SchemeKey, SchemeRegistry } from '../quant/quant-scheme.js';
import { SCHEME } from '../quant/quant-scheme.js';
import { decodeWeights } from '../quant/decode-weights.js';
import { qualityCases } from './cases.js';
import { expectClose, expectSameBits } from './comparison.js';
import type { MatrixFactory } from './layers.js';
import { qualityChecks, qualityExemption } from './quality.js';
import { Random } from '../random.js';
import { randomMatrix } from './random-weights.js';
import type { RandomMatrix } from './random-weights.js';
import type { MatrixDecoder } from '../reference/reference-layers.js';
import { declare, resolveRunner, skipReason } from './runner.js';
import type { Skip, TestRunner } from './runner.js';
import { runSubject } from './subject.js';
import type { NativeRunner, Subject, SubjectCall } from './subject.js';

/** What both suites are told. */
export interface ConformanceOptions extends NativeRunner {
  /** Title of the suite: the backend's name, and where it runs if that matters. */
  readonly name: string;
  /** The device at hand. Rules for others are shown as skipped, with the reason. */
  readonly device: DeviceInfo;
  /** Cases not to run yet. A skip needs a reason; one that names nothing fails. */
  readonly skip?: readonly Skip[];
  /** Of every random layer and call; default 1. Failures print it. */
  readonly seed?: number;
  /** Default: the globals describe, it and after. */
  readonly runner?: TestRunner;
  /** Weights of schemes that the core does not know, by key. */
  readonly schemes?: Readonly<Record<string, SchemeKit>>;
}

/** Makes and reads the weights of a scheme that a plugin defined. */
export interface SchemeKit {
  readonly random: RandomMatrix<SchemeKey>;
  readonly decode: MatrixDecoder;
}

/** The options with defaults filled in. */
export interface SuiteContext {
  readonly options: ConformanceOptions;
  readonly runner: TestRunner;
  readonly skips: readonly Skip[];
  readonly seed: number;
  readonly makeMatrix: MatrixFactory;
  readonly decode: MatrixDecoder;
}

/** Fills in the defaults. Decoded weights are kept as long as the weights are. */
export function suiteContext(options: ConformanceOptions): SuiteContext {
  const kitOf = (scheme: string): SchemeKit | undefined => options.schemes?.[scheme];
  const decoded = new WeakMap<object, Float32Array>();
  return {
    options,
    runner: resolveRunner(options.runner),
    skips: options.skip ?? [],
    seed: options.seed ?? 1,
    makeMatrix: (scheme, rows, columns, random, matrixOptions) =>
      // The kit of a scheme makes weights of that scheme: a registry knows no types.
      (kitOf(scheme)?.random(rows, columns, random, matrixOptions) as SchemeRegistry[typeof scheme] | undefined) ??
      randomMatrix(scheme, rows, columns, random, matrixOptions),
    decode: (matrix) => {
      const known = decoded.get(matrix) ?? (kitOf(matrix[SCHEME])?.decode ?? decodeWeights)(matrix);
      decoded.set(matrix, known);
      return known;
    },
  };
}

/** The kernel's function, or the injected executor for native ones. */
export async function invokeKernel(
  kernel: Kernel,
  call: SubjectCall,
  output: Float32Array,
  accumulate: boolean,
  native: NativeRunner,
): Promise<void> {
  const { entry } = kernel;
  const { numTokens, rows, topK, topkSlots, topkWeights } = call;
  const expertsArgs = { numTokens, topK, hiddenStates: rows, topkSlots, topkWeights, output, accumulate };
  const linearArgs = { numTokens, input: rows, output, accumulate };
  if (entry.type === 'js-experts') {
    entry.run(expertsArgs);
    return;
  }
  if (entry.type === 'js-linear') {
    entry.run(linearArgs);
    return;
  }
  const run = topK > 0 ? native.runExperts : native.runLinear;
  if (run === undefined) {
    const name = topK > 0 ? 'runExperts' : 'runLinear';
    throw new Error(
      `The kernel is native and only an executor can run it: pass the suite a "${name}" that does, such as the engine's CPU device.`,
    );
  }
  await (topK > 0 ? native.runExperts?.(kernel, expertsArgs) : native.runLinear?.(kernel, linearArgs));
}

/** Runs one call and compares it with the reference; with `accumulate`, on top of a random output. */
export async function checkCall(subject: Subject, call: SubjectCall, accumulate: boolean, random: Random): Promise<void> {
  const context = `${subject.context}, ${String(call.numTokens)} tokens`;
  const contribution = subject.reference(call);
  const { outputWidth } = subject;
  if (!accumulate) {
    const output = await runSubject(subject, call);
    expectClose(output, contribution, outputWidth, subject.tolerance(call), context);
    expectExactZeros(output, contribution, context);
    return;
  }
  const before = Float32Array.from(contribution, () => random.normal());
  const output = await runSubject(subject, call, before);
  // Judged by what was added, so that a large output does not hide a wrong contribution; float32 sums cost 2^-24 of the output.
  const added = Float64Array.from(output, (value, i) => value - before[i]!);
  expectClose(added, contribution, outputWidth, subject.tolerance(call), `${context}, adding`);
  for (let row = 0; row < call.numTokens; row++) {
    const range = [row * outputWidth, (row + 1) * outputWidth] as const;
    if (contribution.subarray(...range).some((value) => value !== 0)) continue;
    expectSameBits(output.subarray(...range), before.subarray(...range), `${context}: row ${String(row)} has no experts and`);
  }
}

/** Rows that no expert of the group serves are written, and with zeros. */
function expectExactZeros(output: Float32Array, contribution: Float64Array, context: string): void {
  for (let i = 0; i < output.length; i++) {
    if (contribution[i] === 0 && output[i] !== 0) throw new Error(`${context}: element ${String(i)} is ${String(output[i])}, expected 0.`);
  }
}

export interface QualitySubject {
  readonly ruleId: string;
  readonly rule: Parameters<typeof qualityExemption>[1];
  readonly scheme: string;
  readonly isStorable: boolean;
  readonly open: () => Promise<Subject>;
  readonly makeCall: (subject: Subject, numTokens: number, random: Random) => SubjectCall;
  readonly clampTokens: (numTokens: number) => number;
}

/** Declares every quality case for one rule and scheme. */
export function declareQualityCases(
  context: SuiteContext,
  { ruleId, rule, scheme, isStorable, open, makeCall, clampTokens }: QualitySubject,
): void {
  for (const { id, title } of qualityCases) {
    const reason = skipReason(context.skips, id, ruleId) ?? qualityExemption(id, rule, scheme, isStorable);
    declare(context.runner, title, reason, async () => {
      const subject = await open();
      const random = new Random(context.seed).fork(1000);
      await qualityChecks[id](subject, { makeCall: (numTokens) => makeCall(subject, numTokens, random), clampTokens });
    });
  }
}
