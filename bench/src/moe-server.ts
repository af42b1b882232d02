import type { Plan, PluginHost } from '@moe-server/core';
import type { GenerationRequest } from '@moe-server/engine';
import { Random } from '@moe-server/core/conformance';
import { createEngine } from 'moe-server';
import type { Contestant, ContestantSettings } from './contestant.js';
import { promptOperationsOf } from './prompt-operations.js';
import type { PromptOperations } from './prompt-operations.js';

/** This project's engine, composed as the server composes it, without HTTP. */
export async function openMoeServer({ model, numThreads, maxModelLen, maxNumSeqs, numerics }: ContestantSettings): Promise<Contestant> {
  const startedAt = performance.now();
  let plugins: PluginHost | undefined;
  let prompt: PromptOperations | undefined;
  const { engine, info, runner, dispose } = await createEngine(
    {
      model,
      threads: numThreads,
      maxModelLen,
      // The server's default of 64 sequences costs nothing but cache.
      maxNumSeqs,
      plugins: false,
      seed: 1,
      ...(numerics === undefined ? {} : { numericsPolicy: { default: numerics as 'auto' } }),
    },
    {
      onPlugins: (host) => (plugins = host),
      onPlan: (plan, description, config) => {
        // As createCpuDevice says.
        const attention = numerics === 'float32' ? 'f32' : 'bf16';
        if (plugins !== undefined) prompt = promptOperationsOf(plan, description, config, plugins, plan.maxNumTokens, attention);
      },
    },
  );
  const loadSeconds = (performance.now() - startedAt) / 1000;
  const random = new Random(1);
  const tokens = (length: number): number[] => Array.from({ length }, () => random.int(info.vocabSize));

  // When each sequence had how many tokens: the clock is read as events come.
  let onToken: (requestId: string) => void = () => undefined;
  let onFailure: (error: Error) => void = () => undefined;
  engine.onEvent((event) => {
    if (event.type === 'token') onToken(event.requestId);
    if (event.type === 'error') onFailure(new Error(event.error.message));
  });
  engine.start();

  let numRequests = 0;
  const add = (promptTokenIds: readonly number[], maxTokens: number): string => {
    const id = `request ${String(++numRequests)}`;
    const request: GenerationRequest = { id, promptTokenIds, sampling: { ...sampling, maxTokens, seed: numRequests } };
    engine.addRequest(request);
    return id;
  };
  // A context is prefilled once and found in the prefix cache by later runs.
  const contexts = new Map<string, readonly number[]>();
  const contextOf = (length: number, sequence: number): readonly number[] => {
    const key = `${String(length)}/${String(sequence)}`;
    const known = contexts.get(key) ?? tokens(length);
    contexts.set(key, known);
    return known;
  };

  return {
    facts: {
      engine: 'moe-server',
      details: [info.quantization, ...bindingsOf(info.plan), `${info.kvCache.dtype} KV cache`],
      loadSeconds,
      ...(prompt === undefined ? {} : { prompt }),
    },
    prefill: async (numTokens) => {
      const prompt = tokens(numTokens);
      const startedAt = performance.now();
      await new Promise<void>((resolve, reject) => {
        onFailure = reject;
        onToken = () => {
          resolve();
        };
        add(prompt, 1);
      });
      return (performance.now() - startedAt) / 1000;
    },
    decode: async (contextLength, numTokens, numSequences) => {
      const counts = new Map<string, number>();
      // Timed from where every sequence has its first token (before, some prompts are still being computed) to where every one has
      // `numTokens` more than it had then.
      let startedAt = 0;
      let expertsBefore = 0;
      let expertsPerStep = 0;
      let targets = new Map<string, number>();
      const seconds = await new Promise<number>((resolve, reject) => {
        onFailure = reject;
        onToken = (requestId) => {
          counts.set(requestId, (counts.get(requestId) ?? 0) + 1);
          if (startedAt === 0 && counts.size === numSequences) {
            startedAt = performance.now();
            expertsBefore = runner.numExpertsChosen;
            targets = new Map([...counts].map(([id, had]) => [id, had + numTokens]));
          } else if (startedAt > 0 && [...targets].every(([id, target]) => (counts.get(id) ?? 0) >= target)) {
            // Events come while the next step runs, which is counted when it has ended: between two events lie whole steps.
            expertsPerStep = (runner.numExpertsChosen - expertsBefore) / numTokens;
            resolve((performance.now() - startedAt) / 1000);
          }
        };
        // Sequences that are prefilled first go on decoding until the last is: leave them room.
        for (let i = 0; i < numSequences; i++) add(contextOf(contextLength, i), numTokens + (numSequences > 1 ? extraTokens : 1));
      });
      onToken = () => undefined;
      for (const id of counts.keys()) engine.abort(id);
      return { seconds, expertsPerStep };
    },
    close: dispose,
  };
}

/** How much longer than the timed part several sequences run. */
export const extraTokens = 32;

/** Sampled at temperature 1 and fed back, so that routing does not settle on a few experts; end tokens do not stop. */
const sampling: GenerationRequest['sampling'] = {
  maxTokens: 1,
  minTokens: 0,
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: [],
  seed: 1,
  logprobs: undefined,
  promptLogprobs: undefined,
  stopTokenIds: [],
  ignoreEos: true,
};

/** `cpu/nvfp4-wider-avx512 x 12`: which rules serve how many layers. */
function bindingsOf(plan: unknown): string[] {
  const counts = new Map<string, number>();
  const { layers } = plan as Plan;
  for (const { bindings } of layers) {
    for (const { backend, rule } of bindings) counts.set(`${backend}/${rule}`, (counts.get(`${backend}/${rule}`) ?? 0) + 1);
  }
  return [...counts].map(([rule, count]) => `${rule} x ${String(count)}`);
}
