import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pocketDictionary } from '@moe-server/test-kit';
import type { RunningModel } from './running-model.js';

/** One held-out text of pocket-dictionary. */
export interface Sample {
  readonly id: number;
  readonly kind: string;
  readonly ids: readonly number[];
  /** 1 = a token of the answer. */
  readonly target: readonly (0 | 1)[];
}

/** What the reference computed. */
export type RecordedArithmetic = 'weight_only' | 'weight_and_activation';

interface Likelihood {
  readonly nll: number;
  readonly target_nll: number;
}

/** A prompt with its recorded greedy continuation. */
export interface Continuation {
  readonly prompt: string;
  readonly prompt_ids: readonly number[];
  readonly weight_only: { readonly ids: readonly number[]; readonly ended: boolean };
}

export const samples: readonly Sample[] = evaluationFile('heldout.jsonl')
  .trim()
  .split('\n')
  .map((line) => JSON.parse(line) as Sample);
const recorded = JSON.parse(evaluationFile('reference_nll.json')) as readonly Record<RecordedArithmetic, Likelihood>[];
export const continuations = JSON.parse(evaluationFile('greedy.json')) as readonly Continuation[];

const knownWord = 'known-word-new-question';

/** Over the recorded totals, so 1 = as recorded. */
export interface EvaluationRatios {
  /** Negative log-likelihood of all tokens. */
  readonly total: number;
  /** Of the answers to questions about known words. */
  readonly known: number;
}

/** Scores `chosen` samples. */
export async function evaluate(
  model: RunningModel,
  arithmetic: RecordedArithmetic,
  chosen: readonly Sample[] = samples,
): Promise<EvaluationRatios> {
  const total = { actual: 0, expected: 0 };
  const known = { actual: 0, expected: 0 };
  for (const sample of chosen) {
    const logprobs = await model.score(sample.ids);
    const expected = recorded[samples.indexOf(sample)]?.[arithmetic] ?? { nll: NaN, target_nll: NaN };
    total.actual -= sum(logprobs);
    total.expected += expected.nll;
    if (sample.kind !== knownWord) continue;
    known.actual -= sum(logprobs.filter((_, position) => sample.target[position + 1] === 1));
    known.expected += expected.target_nll;
  }
  return { total: total.actual / total.expected, known: known.actual / known.expected };
}

function evaluationFile(name: string): string {
  return readFileSync(join(pocketDictionary, 'eval', name), 'utf8');
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
