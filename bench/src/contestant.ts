import type { PromptOperations } from './prompt-operations.js';

/** For the report: name and version, formats, and which kernels serve how many layers. */
export interface ContestantFacts {
  readonly engine: string;
  readonly loadSeconds: number;
  /** Facts for people, in the order in which they are printed. */
  readonly details: readonly string[];
  /** Of this project's engine: what a prompt takes in the arithmetic of its kernels. */
  readonly prompt?: PromptOperations;
}

/** One timed decode. */
export interface DecodeTiming {
  readonly seconds: number;
  /** Different experts that a step chose, added up over the layers, on average; undefined where an engine does not tell. */
  readonly expertsPerStep?: number;
}

/** One engine that the benchmark times. Each lives in a process of its own, so that neither's threads or memory disturb the other. */
export interface Contestant {
  readonly facts: ContestantFacts;
  /** Seconds from handing over a prompt of so many random tokens to the first sampled token. */
  readonly prefill: (numTokens: number) => Promise<number>;
  /** `numTokens` steps that each sample a token for every sequence, from `contextLength` tokens on. */
  readonly decode: (contextLength: number, numTokens: number, numSequences: number) => Promise<DecodeTiming>;
  readonly close: () => Promise<void>;
}

/** How a contestant is set up. */
export interface ContestantSettings {
  /** Checkpoint folder, or GGUF file. */
  readonly model: string;
  /** Folder whose node_modules holds the peer. */
  readonly peer?: string;
  readonly numThreads: number;
  /** Positions of the longest sequence. */
  readonly maxModelLen: number;
  readonly maxNumSeqs: number;
  readonly numerics?: string;
}

export type ContestantKind = 'moe-server' | 'llama.cpp';

/** Sent to a contestant's process; answered in order by {@link Answer}. */
export type Order =
  | { readonly type: 'open'; readonly kind: ContestantKind; readonly settings: ContestantSettings }
  | { readonly type: 'prefill'; readonly numTokens: number }
  | { readonly type: 'decode'; readonly contextLength: number; readonly numTokens: number; readonly numSequences: number }
  | { readonly type: 'close' };

export type Answer =
  | { readonly type: 'opened'; readonly facts: ContestantFacts }
  | ({ readonly type: 'timed' } & DecodeTiming)
  | { readonly type: 'closed' }
  | { readonly type: 'failed'; readonly message: string };
