import type { KvCacheChoice, NumericsChoice } from '@moe-server/core';
import type { SettingParser } from './parsers.js';
import { backendNames, bytes, flag, integer, oneOf, seconds, text, texts, tokenCount } from './parsers.js';
import { speculativeConfig } from './speculative-config.js';
import type { DraftBackends } from './speculative-config.js';

/** Commands that take settings. */
export type CommandName = 'start' | 'plan' | 'backends' | 'calibrate' | 'bench';

/** One setting: how a flag, the environment and a file spell it, what it does, and what it is by default. */
export interface OptionSpec<T = unknown> {
  /** `--max-model-len`, `MOE_MAX_MODEL_LEN`, `"max-model-len"`. */
  readonly name: string;
  /** What stands for the value in the help; left out for switches. */
  readonly placeholder?: string;
  readonly description: string;
  readonly group: OptionGroup;
  readonly parse: SettingParser<T>;
  readonly default: T;
  /** Shown in the help where the default itself says nothing. */
  readonly defaultText?: string;
  /** May be given several times. */
  readonly isList?: boolean;
  /** Commands that have it; left out = start only. */
  readonly commands?: readonly CommandName[];
  /** Another name in the environment than MOE_<NAME>. */
  readonly environment?: string;
}

export type OptionGroup = 'Model' | 'Server' | 'Scheduling and memory' | 'Kernels' | 'Plugins';

const everywhere = ['start', 'plan', 'backends', 'calibrate', 'bench'] as const;
const planning = ['start', 'plan'] as const;
const measuring = ['start', 'plan', 'calibrate'] as const;
const ofLayers = ['start', 'plan', 'calibrate', 'bench'] as const;

/** What an option without a default is. */
const absent = undefined;

/** Every setting of the server, in the order of the help. Names are vLLM's where vLLM has the setting. */
export const options = {
  model: spec<string | undefined>({
    name: 'model',
    placeholder: 'DIR',
    description: 'folder of a checkpoint (config.json, *.safetensors, tokenizer.json)',
    group: 'Model',
    parse: text,
    default: absent,
    defaultText: 'the bundled Pocket Dictionary',
    commands: ofLayers,
  }),
  servedModelName: spec<readonly string[]>({
    name: 'served-model-name',
    placeholder: 'NAME',
    description: 'name that requests use; repeat it for further names',
    group: 'Model',
    parse: texts,
    default: [],
    defaultText: "the folder's name",
    isList: true,
  }),
  maxModelLen: spec<number | undefined>({
    name: 'max-model-len',
    placeholder: 'N',
    description: 'tokens of prompt and answer together',
    group: 'Model',
    parse: tokenCount,
    default: absent,
    defaultText: "the model's own",
  }),
  generationConfig: spec<'auto' | 'vllm'>({
    name: 'generation-config',
    placeholder: 'SOURCE',
    description: "sampling defaults: auto = the model's generation_config.json, vllm = none",
    group: 'Model',
    parse: oneOf('auto', 'vllm'),
    default: 'auto',
  }),
  seed: spec<number | undefined>({
    name: 'seed',
    placeholder: 'N',
    description: 'makes the seeds of requests that bring none repeatable',
    group: 'Model',
    parse: integer(0),
    default: absent,
    defaultText: 'random',
  }),
  host: spec<string>({
    name: 'host',
    placeholder: 'ADDRESS',
    description: 'address to listen on; 0.0.0.0 for all, best with --api-key',
    group: 'Server',
    parse: text,
    default: '127.0.0.1',
  }),
  port: spec<number>({
    name: 'port',
    placeholder: 'N',
    description: 'port to listen on, 0 for any free one',
    group: 'Server',
    parse: integer(0, 65_535),
    default: 8000,
  }),
  apiKey: spec<readonly string[]>({
    name: 'api-key',
    placeholder: 'KEY',
    description: 'key that clients must send; repeat it for several. Better in MOE_API_KEY, where other users cannot see it',
    group: 'Server',
    parse: texts,
    default: [],
    defaultText: 'none needed',
    isList: true,
  }),
  apiKeyFile: spec<string | undefined>({
    name: 'api-key-file',
    placeholder: 'FILE',
    description: 'file with keys, one a line, # begins a comment',
    group: 'Server',
    parse: text,
    default: absent,
  }),
  corsOrigin: spec<readonly string[]>({
    name: 'cors-origin',
    placeholder: 'ORIGIN',
    description: 'web origin that may call the server from a browser; repeatable, * for all',
    group: 'Server',
    parse: texts,
    default: [],
    defaultText: 'none',
    isList: true,
  }),
  maxBody: spec<number>({
    name: 'max-body',
    placeholder: 'BYTES',
    description: 'largest request body',
    group: 'Server',
    parse: bytes,
    default: 32 * 2 ** 20,
    defaultText: '32MiB',
  }),
  drainTimeout: spec<number>({
    name: 'drain-timeout',
    placeholder: 'SECONDS',
    description: 'time that running requests get after SIGTERM',
    group: 'Server',
    parse: seconds,
    default: 30,
  }),
  logLevel: spec<'trace' | 'debug' | 'info' | 'warn' | 'error'>({
    name: 'log-level',
    placeholder: 'LEVEL',
    description: 'trace, debug, info, warn or error',
    group: 'Server',
    parse: oneOf('trace', 'debug', 'info', 'warn', 'error'),
    default: 'info',
    commands: everywhere,
  }),
  maxNumSeqs: spec<number>({
    name: 'max-num-seqs',
    placeholder: 'N',
    description: 'sequences that run at once',
    group: 'Scheduling and memory',
    parse: integer(1, 4096),
    default: 64,
  }),
  maxNumBatchedTokens: spec<number>({
    name: 'max-num-batched-tokens',
    placeholder: 'N',
    description: 'tokens of one step; longer prompts are cut into chunks',
    group: 'Scheduling and memory',
    parse: tokenCount,
    default: 512,
    commands: measuring,
  }),
  maxNumQueuedReqs: spec<number>({
    name: 'max-num-queued-reqs',
    placeholder: 'N',
    description: 'sequences that may wait beside those; more get 429',
    group: 'Scheduling and memory',
    parse: integer(0),
    default: 1024,
  }),
  kvCacheDtype: spec<KvCacheChoice>({
    name: 'kv-cache-dtype',
    placeholder: 'TYPE',
    description: 'how keys and values are stored: auto (as the checkpoint says), bf16 or fp8',
    group: 'Scheduling and memory',
    parse: oneOf('auto', 'bf16', 'fp8'),
    default: 'auto',
    commands: ofLayers,
  }),
  kvCacheMemoryBytes: spec<number | undefined>({
    name: 'kv-cache-memory-bytes',
    placeholder: 'BYTES',
    description: 'memory for keys and values, e.g. 512M or 4GiB',
    group: 'Scheduling and memory',
    parse: bytes,
    default: absent,
    defaultText: 'from free memory, at most what --max-num-seqs can use',
  }),
  enablePrefixCaching: spec<boolean>({
    name: 'enable-prefix-caching',
    description: 'compute every prompt anew instead of reusing common beginnings',
    group: 'Scheduling and memory',
    parse: flag,
    default: true,
  }),
  device: spec<'cpu' | 'reference'>({
    name: 'device',
    placeholder: 'NAME',
    description: 'cpu, or reference: plain TypeScript, for comparing, very slow',
    group: 'Kernels',
    parse: oneOf('cpu', 'reference'),
    default: 'cpu',
    commands: everywhere,
  }),
  simulate: spec<string | undefined>({
    name: 'simulate',
    placeholder: 'DEVICE',
    description: 'bind kernels as this device would (gb10, h100, sm_90, …) and compute what they declare, on any machine; very slow',
    group: 'Kernels',
    parse: text,
    default: absent,
    defaultText: 'serve on this machine',
  }),
  threads: spec<number | undefined>({
    name: 'threads',
    placeholder: 'N',
    description: 'threads that compute',
    group: 'Kernels',
    parse: integer(1, 1024),
    default: absent,
    defaultText: 'one per available processor',
    commands: everywhere,
  }),
  plan: spec<string | undefined>({
    name: 'plan',
    placeholder: 'FILE',
    description: 'plan that was kept with plan --out; the start is refused where a layer would be served otherwise now',
    group: 'Kernels',
    parse: text,
    default: absent,
    defaultText: 'made anew',
  }),
  moeBackend: spec<readonly string[]>({
    name: 'moe-backend',
    placeholder: 'NAME',
    description:
      'expert kernels to prefer, where they can; !NAME = never, auto = as if nothing were said; \'{"nvfp4":"b12x","fp8":"cutlass"}\' by scheme. ' +
      "Narrower: --moe-backend.fp8 NAME or --fp8-moe-backend NAME (any scheme or family), --moe-backend.draft NAME, --moe-backend.layers 'PATTERN=NAME'",
    group: 'Kernels',
    parse: backendNames,
    default: [],
    defaultText: 'best per layer',
    isList: true,
    commands: planning,
    environment: 'MOE_BACKEND',
  }),
  moeBackendPolicy: spec<'prefer' | 'require'>({
    name: 'moe-backend-policy',
    placeholder: 'POLICY',
    description: 'prefer, or require: stop when a named backend cannot serve its layers',
    group: 'Kernels',
    parse: oneOf('prefer', 'require'),
    default: 'prefer',
    commands: planning,
    environment: 'MOE_BACKEND_POLICY',
  }),
  linearBackend: spec<readonly string[]>({
    name: 'linear-backend',
    placeholder: 'NAME',
    description: 'the same for attention, dense layers and the vocabulary projection, with the same scopes',
    group: 'Kernels',
    parse: backendNames,
    default: [],
    defaultText: 'best per layer',
    isList: true,
    commands: planning,
  }),
  linearBackendPolicy: spec<'prefer' | 'require'>({
    name: 'linear-backend-policy',
    placeholder: 'POLICY',
    description: 'the same for --linear-backend',
    group: 'Kernels',
    parse: oneOf('prefer', 'require'),
    default: 'prefer',
    commands: planning,
  }),
  speculativeConfig: spec<DraftBackends>({
    name: 'speculative-config',
    placeholder: 'JSON',
    description: 'kernels of the draft head, \'{"moe_backend":"triton"}\'; the same as --moe-backend.draft NAME',
    group: 'Kernels',
    parse: speculativeConfig,
    default: {},
    commands: planning,
  }),
  tensorParallelSize: spec<number>({
    name: 'tensor-parallel-size',
    placeholder: 'N',
    description: 'plan for one of N ranks that share every layer',
    group: 'Kernels',
    parse: integer(1, 1024),
    default: 1,
    commands: ['plan'],
  }),
  enableExpertParallel: spec<boolean>({
    name: 'enable-expert-parallel',
    description: 'let those ranks share the experts of a layer instead of cutting each',
    group: 'Kernels',
    parse: flag,
    default: false,
    commands: ['plan'],
  }),
  batchInvariant: spec<boolean>({
    name: 'batch-invariant',
    description: 'only kernels whose results for a request do not depend on what runs beside it',
    group: 'Kernels',
    parse: flag,
    default: false,
    commands: planning,
  }),
  numerics: spec<NumericsChoice>({
    name: 'numerics',
    placeholder: 'CLASS',
    description:
      'inputs of quantized layers: same (rounded as calibrated), wider (left at 16 bit or more), approximate, or auto (the better of the first two); ' +
      'float32: nothing is rounded below that, in any layer. --numerics.nvfp4 CLASS for one scheme',
    group: 'Kernels',
    parse: oneOf('auto', 'same', 'wider', 'float32', 'approximate'),
    default: 'auto',
    commands: ofLayers,
  }),
  verifyKernels: spec<boolean>({
    name: 'verify-kernels',
    description: 'take kernels at their word instead of running each on a few rows against the reference',
    group: 'Kernels',
    parse: flag,
    default: true,
  }),
  cacheDir: spec<string | undefined>({
    name: 'cache-dir',
    placeholder: 'DIR',
    description: 'where to remember what was found out about kernels here',
    group: 'Kernels',
    parse: text,
    default: absent,
    defaultText: '$XDG_CACHE_HOME/moe-server or ~/.cache/moe-server',
    commands: measuring,
  }),
  packedWeightsCache: spec<boolean>({
    name: 'packed-weights-cache',
    description: "keep weights in the cache folder as kernels read them, and read them from there: once more the checkpoint's size on disk",
    group: 'Kernels',
    parse: flag,
    default: false,
  }),
  calibration: spec<boolean>({
    name: 'calibration',
    description: 'rank kernels by priority, whatever `moe-server calibrate` measured here',
    group: 'Kernels',
    parse: flag,
    default: true,
    commands: planning,
  }),
  plugin: spec<readonly string[]>({
    name: 'plugin',
    placeholder: 'PACKAGE',
    description: 'further plugin, a package name or a path; repeatable. One that cannot be used ends the start',
    group: 'Plugins',
    parse: texts,
    default: [],
    isList: true,
    commands: everywhere,
  }),
  plugins: spec<boolean>({
    name: 'plugins',
    description: 'only the built-in plugins and those named by --plugin',
    group: 'Plugins',
    parse: flag,
    default: true,
    commands: everywhere,
  }),
} as const;

export type OptionName = keyof typeof options;

/** The value of every setting. */
export type Settings = { readonly [K in OptionName]: (typeof options)[K] extends OptionSpec<infer T> ? T : never };

export const optionNames = Object.keys(options) as OptionName[];

/** Keeps the value's type, which a plain literal would widen. */
function spec<T>(option: OptionSpec<T>): OptionSpec<T> {
  return option;
}
