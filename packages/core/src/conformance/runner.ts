/**
 * What the suites need of a test runner: Mocha, Jest and Vitest have it as globals, node:test exports it. Tests of the suites
 * themselves inject their own and look at what was collected.
 */
export interface TestRunner {
  readonly describe: (title: string, body: () => void) => void;
  readonly it: TestFunction;
  /** Runs after the tests of the describe around it; without one, weights live until they are collected. */
  readonly after?: (body: () => void) => void;
}

export interface TestFunction {
  (title: string, body: () => Promise<void>): unknown;
  readonly skip: (title: string, body: () => Promise<void>) => unknown;
}

/** A case that a backend does not pass yet, on purpose. */
export interface Skip {
  /** Id in the case table. */
  readonly case: string;
  /** Only for this rule; every rule when left out. */
  readonly rule?: string;
  /** Why, in a sentence; shown beside the skipped test. */
  readonly reason: string;
}

/**
 * The runner that was given, or the globals.
 *
 * @throws {TypeError} when there is neither.
 */
export function resolveRunner(given: TestRunner | undefined): TestRunner {
  if (given !== undefined) return given;
  const found = globalThis as unknown as Partial<TestRunner & { readonly afterAll: TestRunner['after'] }>;
  if (typeof found.describe !== 'function' || typeof found.it !== 'function') {
    throw new TypeError(
      'The conformance suite found no global describe and it: run it with a test runner, or pass { runner: { describe, it } }.',
    );
  }
  const after = found.after ?? found.afterAll;
  return { describe: found.describe, it: found.it, ...(after === undefined ? {} : { after }) };
}

/** Declares one test, or a skipped one whose title carries the reason. */
export function declare(runner: TestRunner, title: string, reason: string | undefined, body: () => Promise<void>): void {
  if (reason === undefined) runner.it(title, body);
  else runner.it.skip(`${title} (skipped: ${reason})`, body);
}

/** Skips must name cases and rules that exist, and say why: a failing test for each that does not. */
export function declareSkipFaults(
  runner: TestRunner,
  skips: readonly Skip[],
  caseIds: readonly string[],
  ruleIds: readonly string[],
): void {
  for (const skip of skips) {
    const fault = faultOf(skip, caseIds, ruleIds);
    if (fault === undefined) continue;
    runner.it(`skips "${skip.case}" with a reason`, () => Promise.reject(new Error(fault)));
  }
}

function faultOf(skip: Skip, caseIds: readonly string[], ruleIds: readonly string[]): string | undefined {
  if (!caseIds.includes(skip.case)) return `There is no case "${skip.case}" to skip. Cases: ${caseIds.join(', ')}.`;
  if (skip.rule !== undefined && !ruleIds.includes(skip.rule))
    return `There is no rule "${skip.rule}" to skip a case of. Rules: ${ruleIds.join(', ')}.`;
  if (skip.reason.trim().length < 10) return `The skip of "${skip.case}" needs a reason that a reader can act on, got "${skip.reason}".`;
  return undefined;
}

/** The reason to skip a case of a rule, undefined when it is to run. */
export function skipReason(skips: readonly Skip[], caseId: string, ruleId: string): string | undefined {
  return skips.find((skip) => skip.case === caseId && (skip.rule === undefined || skip.rule === ruleId))?.reason;
}

/** Runs `make` at the first call and gives the same result ever after. */
export function once<T>(make: () => Promise<T>): () => Promise<T> {
  let made: Promise<T> | undefined;
  return () => (made ??= make());
}
