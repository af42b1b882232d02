import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Random } from '@moe-server/core/conformance';
import type { Contestant, ContestantSettings } from './contestant.js';

/** The part of node-llama-cpp that is used. It is no dependency of this project: `--peer` names a folder that has it. */
interface NodeLlamaCpp {
  readonly getLlama: (options: {
    readonly gpu: false;
    readonly build: 'never';
    readonly maxThreads: number;
    readonly logLevel: 'error';
  }) => Promise<{
    readonly loadModel: (options: {
      readonly modelPath: string;
      readonly useMmap: boolean;
      readonly ignoreMemorySafetyChecks: true;
    }) => Promise<LlamaModel>;
    readonly llamaCppRelease: { readonly release: string };
    readonly dispose: () => Promise<void>;
  }>;
}

interface LlamaModel {
  readonly fileInfo: { readonly metadata: { readonly tokenizer: { readonly ggml: { readonly tokens: readonly unknown[] } } } };
  readonly createContext: (options: {
    readonly contextSize: number;
    readonly batchSize: number;
    readonly sequences: number;
    readonly threads: number;
    readonly flashAttention: 'auto';
    readonly ignoreMemorySafetyChecks: true;
  }) => Promise<LlamaContext>;
  readonly dispose: () => Promise<void>;
}

interface LlamaContext {
  readonly getSequence: () => LlamaSequence;
  readonly dispose: () => Promise<void>;
}

interface LlamaSequence {
  readonly nextTokenIndex: number;
  readonly clearHistory: () => Promise<void>;
  readonly evaluate: (
    tokens: readonly number[],
    options: { readonly temperature: number; readonly yieldEogToken: true },
  ) => AsyncGenerator<number, void, number>;
  readonly evaluateWithoutGeneratingNewTokens: (tokens: readonly number[]) => Promise<void>;
  readonly eraseContextTokenRanges: (ranges: readonly { readonly start: number; readonly end: number }[]) => Promise<void>;
}

/** Most tokens of one evaluation; node-llama-cpp's own default of 512 is slower on long prompts. */
const batchSize = 2048;

/** Positions beside context and answer; a sequence that fills its context to the end shifts it. */
const spareTokens = 16;

/** llama.cpp through node-llama-cpp, what a Node user installs for this job. */
export async function openLlamaCpp({ model: modelPath, peer, numThreads, maxModelLen }: ContestantSettings): Promise<Contestant> {
  const startedAt = performance.now();
  const folder = join(resolve(peer ?? '.'), 'node_modules/node-llama-cpp');
  const { version } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { readonly version: string };
  const { getLlama } = (await import(pathToFileURL(join(folder, 'dist/index.js')).href)) as NodeLlamaCpp;
  const llama = await getLlama({ gpu: false, build: 'never', maxThreads: numThreads, logLevel: 'error' });
  // Read into memory, not mapped: types that are not repacked at load would otherwise be read from the file's pages.
  const model = await llama.loadModel({ modelPath, useMmap: false, ignoreMemorySafetyChecks: true });
  const loadSeconds = (performance.now() - startedAt) / 1000;
  const vocabSize = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
  const random = new Random(1);
  // The last ids are special tokens in the files that the converter makes.
  const tokens = (length: number): number[] => Array.from({ length }, () => random.int(vocabSize - 8));
  const generation = { temperature: 0, yieldEogToken: true } as const;

  // One context at a time, of the sequences and the length that are asked for: keys and values of several engines must fit side by side.
  let current: { readonly context: LlamaContext; readonly sequences: readonly LlamaSequence[]; readonly contextSize: number } | undefined;
  const sequencesFor = async (count: number, length: number): Promise<readonly LlamaSequence[]> => {
    if (current?.sequences.length === count && current.contextSize >= length) return current.sequences;
    await current?.context.dispose();
    current = undefined;
    const contextSize = count === 1 ? maxModelLen : length;
    const context = await model.createContext({
      contextSize,
      batchSize: Math.min(batchSize, contextSize),
      sequences: count,
      threads: numThreads,
      flashAttention: 'auto',
      ignoreMemorySafetyChecks: true,
    });
    current = { context, sequences: Array.from({ length: count }, () => context.getSequence()), contextSize };
    return current.sequences;
  };

  return {
    facts: { engine: 'llama.cpp', details: [`node-llama-cpp ${version}`, `llama.cpp ${llama.llamaCppRelease.release}`], loadSeconds },
    prefill: async (numTokens) => {
      const [sequence] = await sequencesFor(1, numTokens + 1);
      if (sequence === undefined) throw new Error('The context has no sequence.');
      await sequence.clearHistory();
      const prompt = tokens(numTokens);
      const begin = performance.now();
      const steps = sequence.evaluate(prompt, generation);
      await steps.next();
      const seconds = (performance.now() - begin) / 1000;
      await steps.return();
      return seconds;
    },
    decode: async (contextLength, numTokens, numSequences) => {
      const sequences = await sequencesFor(numSequences, contextLength + numTokens + spareTokens);
      for (const sequence of sequences) {
        // After a run the sequence is cut back to its context, and the next run begins there.
        if (sequence.nextTokenIndex === contextLength - 1) continue;
        await sequence.clearHistory();
        await sequence.evaluateWithoutGeneratingNewTokens(tokens(contextLength - 1));
      }
      const steps = sequences.map((sequence) => sequence.evaluate(tokens(1), generation));
      await Promise.all(steps.map((step) => step.next()));
      const begin = performance.now();
      // The sampled token is replaced by a random one: a random model that repeats itself would settle on a few experts.
      for (let i = 0; i < numTokens; i++) await Promise.all(steps.map((step) => step.next(random.int(vocabSize - 8))));
      const seconds = (performance.now() - begin) / 1000;
      await Promise.all(steps.map((step) => step.return()));
      for (const sequence of sequences)
        await sequence.eraseContextTokenRanges([{ start: contextLength - 1, end: sequence.nextTokenIndex }]);
      return { seconds };
    },
    close: async () => {
      await current?.context.dispose();
      await model.dispose();
      await llama.dispose();
    },
  };
}
