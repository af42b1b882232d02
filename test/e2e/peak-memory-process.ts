// Loads a model as a start does, runs a prompt through it, and reports the most memory it took: started by peak-memory.test.ts, because what
// the process of a test suite once took stays in its high-water mark.
import { readFileSync } from 'node:fs';
import type { GenerationRequest } from '@moe-server/engine';
import type { EngineSettings } from 'moe-server';
import { createEngine } from 'moe-server';

export interface PeakMemoryReport {
  /** High-water mark of the resident set (VmHWM). */
  readonly peakBytes: number;
  /** Packed weights, and what is read as it is. */
  readonly weightBytes: number;
  readonly kvCacheBytes: number;
}

const settings = JSON.parse(process.argv[2] ?? '') as EngineSettings;
const { engine, info, dispose } = await createEngine(settings);
const sampling: GenerationRequest['sampling'] = {
  maxTokens: 8,
  minTokens: 0,
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: [],
  seed: undefined,
  logprobs: undefined,
  promptLogprobs: undefined,
  stopTokenIds: [],
  ignoreEos: true,
};
const ended = new Promise<void>((resolve) => {
  engine.onEvent(({ type }) => {
    if (type === 'finish' || type === 'error') resolve();
  });
});
engine.start();
engine.addRequest({ id: 'prompt', promptTokenIds: Array.from({ length: 600 }, (_, i) => i % info.vocabSize), sampling });
await ended;
await dispose();

const peak = /^VmHWM:\s*(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
process.send?.({
  peakBytes: Number(peak) * 1024,
  weightBytes: info.weightBytes,
  kvCacheBytes: info.kvCache.bytes,
} satisfies PeakMemoryReport);
process.disconnect();
