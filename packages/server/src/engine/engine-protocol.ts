import type { Plan, PluginInfo, SerializedMoeError } from '@moe-server/core';
import type { EngineEvent, EngineStats, GenerationDefaults, GenerationRequest, MetricsDelta } from '@moe-server/engine';
import type { EngineSettings } from '../composition/engine-settings.js';

/** What the HTTP process must know about the loaded model. */
export interface ModelInfo {
  /** As in config.json, `Qwen3MoeForCausalLM`. */
  readonly architecture: string;
  /** Summary for people: which schemes the checkpoint mixes. */
  readonly quantization: string;
  readonly device: string;
  readonly vocabSize: number;
  /** Prompt and output of one sequence together, in tokens. */
  readonly maxModelLen: number;
  readonly maxNumSeqs: number;
  readonly maxNumBatchedTokens: number;
  readonly weightBytes: number;
  /** From generation_config.json, for what a request leaves out. */
  readonly generationDefaults: GenerationDefaults;
  readonly kvCache: {
    readonly dtype: string;
    readonly blockSize: number;
    readonly numBlocks: number;
    readonly bytes: number;
    readonly isPrefixCachingEnabled: boolean;
  };
  /** The plan as `moe-server plan --json` prints it. */
  readonly plan: Plan;
}

/** Before the first snapshot. */
export const noStats: EngineStats = {
  numRunning: 0,
  numWaiting: 0,
  kvCacheUsage: 0,
  numBlocks: 0,
  blockSize: 0,
  prefixCacheQueries: 0,
  prefixCacheHits: 0,
  numPreemptions: 0,
  promptTokens: 0,
  generationTokens: 0,
  numSteps: 0,
  numFailedSteps: 0,
  numCorruptedRequests: 0,
  finished: { stop: 0, length: 0, abort: 0, error: 0 },
  betweenStepsMs: 0,
};

/** HTTP process to engine process. */
export type EngineCommand =
  | { readonly type: 'start'; readonly settings: EngineSettings; readonly logLevel: string }
  | { readonly type: 'generate'; readonly request: GenerationRequest }
  | { readonly type: 'abort'; readonly requestId: string }
  /** Abort everything and end. */
  | { readonly type: 'close' };

/** Engine process to HTTP process. */
export type EngineMessage =
  | { readonly type: 'plugins'; readonly plugins: readonly PluginInfo[]; readonly problems: readonly string[] }
  | { readonly type: 'plan'; readonly plan: Plan; readonly architecture: string; readonly quantization: string; readonly vocabSize: number }
  /** A kernel was refused while loading: a sentence with the numbers. Another plan follows. */
  | { readonly type: 'refused'; readonly sentence: string }
  | { readonly type: 'progress'; readonly bytesDone: number; readonly bytesTotal: number }
  | { readonly type: 'ready'; readonly model: ModelInfo }
  /** Everything one step produced, in one message. */
  | { readonly type: 'events'; readonly events: readonly EngineEvent[] }
  /** Several times a second, also while nothing runs: a process that stops sending it hangs. */
  | { readonly type: 'heartbeat'; readonly stats: EngineStats; readonly metrics: MetricsDelta }
  /** The model cannot be loaded; the process ends after it. */
  | { readonly type: 'failed'; readonly error: SerializedMoeError };
