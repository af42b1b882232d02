import type { TestRunner } from '../../src/conformance/index.js';

export interface CollectedResults {
  readonly passed: readonly string[];
  /** Titles, those of the describes around included. */
  readonly failed: readonly { readonly title: string; readonly message: string }[];
  readonly skipped: readonly string[];
}

/** Declares a suite into a runner of its own, runs it and tells what came out. */
export async function collectResults(declareSuite: (runner: TestRunner) => void): Promise<CollectedResults> {
  const tests: { readonly title: string; readonly body: () => Promise<void> }[] = [];
  const skipped: string[] = [];
  const cleanups: (() => void)[] = [];
  const path: string[] = [];
  const titleOf = (title: string): string => [...path, title].join(' > ');
  declareSuite({
    describe: (title, body) => {
      path.push(title);
      body();
      path.pop();
    },
    it: Object.assign(
      (title: string, body: () => Promise<void>) => {
        tests.push({ title: titleOf(title), body });
      },
      { skip: (title: string) => skipped.push(titleOf(title)) },
    ),
    after: (body) => cleanups.push(body),
  });
  const passed: string[] = [];
  const failed: { title: string; message: string }[] = [];
  for (const { title, body } of tests) {
    try {
      await body();
      passed.push(title);
    } catch (error) {
      failed.push({ title, message: error instanceof Error ? error.message : String(error) });
    }
  }
  for (const cleanup of cleanups) cleanup();
  return { passed, failed, skipped };
}
