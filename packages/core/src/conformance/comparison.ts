import { measureError } from '../reference/error-figures.js';
import type { Tolerance } from '../reference/tolerance.js';

/**
 * @param context - what ran, seed included: begins the message.
 * @throws {Error} with the figures when `actual` is outside the tolerance.
 */
export function expectClose(
  actual: ArrayLike<number>,
  reference: ArrayLike<number>,
  rowLength: number,
  tolerance: Tolerance,
  context: string,
): void {
  const { nmse, maxError, worstIndex } = measureError(actual, reference);
  if (nmse <= tolerance.nmse && maxError <= tolerance.maxError) return;
  throw new Error(
    `${context}: NMSE ${nmse.toExponential(2)} (allowed ${tolerance.nmse.toExponential(2)}), largest error ${maxError.toExponential(2)} of the reference's RMS ` +
      `(allowed ${tolerance.maxError.toExponential(2)}); worst at row ${String(Math.floor(worstIndex / rowLength))}, column ${String(worstIndex % rowLength)}: ` +
      `expected ${String(reference[worstIndex])}, got ${String(actual[worstIndex])}.`,
  );
}

/** @throws {Error} at the first element whose bits differ; −0 and 0 differ, NaN equals NaN. */
export function expectSameBits(actual: ArrayLike<number>, expected: ArrayLike<number>, context: string): void {
  if (actual.length !== expected.length)
    throw new Error(`${context}: ${String(actual.length)} elements where ${String(expected.length)} were expected.`);
  for (let i = 0; i < expected.length; i++) {
    if (Object.is(actual[i], expected[i])) continue;
    throw new Error(`${context}: element ${String(i)} is ${String(actual[i])}, expected ${String(expected[i])}, bit for bit.`);
  }
}

/** @throws {Error} at the first difference between two plain structures; typed arrays by element, symbol keys included. */
export function expectEqual(actual: unknown, expected: unknown, context: string): void {
  if (ArrayBuffer.isView(expected)) {
    if (!ArrayBuffer.isView(actual) || actual.constructor !== expected.constructor)
      throw new Error(`${context}: expected a ${expected.constructor.name}.`);
    expectSameBits(actual as unknown as ArrayLike<number>, expected as unknown as ArrayLike<number>, context);
    return;
  }
  if (typeof expected !== 'object' || expected === null || typeof actual !== 'object' || actual === null) {
    if (!Object.is(actual, expected)) throw new Error(`${context}: expected ${String(expected)}, got ${String(actual)}.`);
    return;
  }
  // A member that is undefined is the same as one left out.
  for (const key of new Set([...Reflect.ownKeys(expected), ...Reflect.ownKeys(actual)])) {
    expectEqual(
      (actual as Record<PropertyKey, unknown>)[key],
      (expected as Record<PropertyKey, unknown>)[key],
      `${context}.${String(key)}`,
    );
  }
}

/** @throws {Error} with `message` when `condition` is false. */
export function expectThat(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(message);
}
