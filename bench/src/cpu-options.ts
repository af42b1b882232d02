import { basename, extname } from 'node:path';
import { availableParallelism } from 'node:os';
import { count, counts, parseArguments, seconds, UsageError } from './arguments.js';
import { shapeNames } from './shapes.js';
import type { ShapeName } from './shapes.js';

export const help = `Measures prefill and decode on this machine's processors, against the bandwidth and the dot products of the same minute.

  npm run bench -- cpu [options]

  --shape NAME          pocket (the bundled model, default), S (1.0 G parameters) or M (the layer of Qwen3-30B-A3B, 12 layers, 4.3 GB);
                        S and M are written with random weights at the first use and kept
  --layers N            fewer layers
  --checkpoint DIR      a checkpoint of your own instead
  --cache DIR           where synthetic checkpoints are kept (default: moe-bench in the temporary folder)
  --write-only          write the checkpoint, print its folder and stop: to convert it for the peer
  --threads N           2
  --runs N              3 counted runs of each figure, after one to warm up
  --prompt A,B          512,2048: prompt lengths; "" for none
  --context A,B         128,2048: lengths to decode at; "" for none
  --tokens N            48: tokens decoded a run
  --parallel A,B        4,8: sequences decoded together, at the first context length; "" for none
  --numerics A,B        auto: auto, same, wider, float32, approximate: each an engine of its own with weights of its own
  --peer DIR            a folder whose node_modules has node-llama-cpp: runs it too, in turn, in the same run
  --peer-gguf FILE      the same weights for it; repeat it for further files, LABEL=FILE to name one
  --quiet SECONDS       60: time, in all, to wait for other programs and to repeat runs that they disturbed; 0 = count every run
  --json FILE           write everything measured
  --markdown FILE       write it as a section of a document`;

/** What to measure and how. */
export interface CpuBenchOptions {
  readonly shape: ShapeName;
  readonly numLayers: number | undefined;
  readonly checkpoint: string | undefined;
  readonly cache: string | undefined;
  readonly isWriteOnly: boolean;
  readonly numThreads: number;
  readonly numRuns: number;
  readonly prompts: readonly number[];
  readonly contexts: readonly number[];
  readonly parallel: readonly number[];
  readonly numTokens: number;
  /** One or more. */
  readonly numerics: readonly string[];
  readonly peers: { readonly folder: string; readonly files: readonly PeerFile[] } | undefined;
  readonly quietSeconds: number;
  readonly jsonFile: string | undefined;
  readonly markdownFile: string | undefined;
}

export interface PeerFile {
  readonly label: string;
  readonly file: string;
}

const numericsClasses = ['auto', 'same', 'wider', 'float32', 'approximate'];

/** @returns undefined when the help is wanted. @throws {UsageError}. */
export function readCpuOptions(args: string[]): CpuBenchOptions | undefined {
  const { values } = parseArguments({
    args,
    options: {
      shape: { type: 'string', default: 'pocket' },
      layers: { type: 'string' },
      checkpoint: { type: 'string' },
      cache: { type: 'string' },
      'write-only': { type: 'boolean', default: false },
      threads: { type: 'string', default: String(Math.min(2, availableParallelism())) },
      runs: { type: 'string', default: '3' },
      prompt: { type: 'string', default: '512,2048' },
      context: { type: 'string', default: '128,2048' },
      tokens: { type: 'string', default: '48' },
      parallel: { type: 'string', default: '4,8' },
      numerics: { type: 'string', default: 'auto' },
      peer: { type: 'string' },
      'peer-gguf': { type: 'string', multiple: true, default: [] },
      quiet: { type: 'string', default: '60' },
      json: { type: 'string' },
      markdown: { type: 'string' },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help) return undefined;
  const shape = shapeNames.find((name) => name === values.shape);
  if (shape === undefined) throw new UsageError(`--shape must be one of ${shapeNames.join(', ')}, got "${values.shape}".`);
  const files = values['peer-gguf'].map(peerFile);
  if ((values.peer === undefined) !== (files.length === 0)) throw new UsageError('--peer and --peer-gguf go together.');
  return {
    shape,
    numLayers: values.layers === undefined ? undefined : count('layers', values.layers),
    checkpoint: values.checkpoint,
    cache: values.cache,
    isWriteOnly: values['write-only'],
    numThreads: count('threads', values.threads),
    numRuns: count('runs', values.runs),
    prompts: counts('prompt', values.prompt),
    contexts: counts('context', values.context),
    parallel: counts('parallel', values.parallel),
    numTokens: count('tokens', values.tokens),
    numerics: numericsOf(values.numerics),
    peers: values.peer === undefined ? undefined : { folder: values.peer, files: withoutDoubles(files) },
    quietSeconds: seconds('quiet', values.quiet),
    jsonFile: values.json,
    markdownFile: values.markdown,
  };
}

function numericsOf(text: string): string[] {
  const classes = [...new Set(text.split(','))];
  const unknown = classes.find((name) => !numericsClasses.includes(name));
  if (unknown !== undefined)
    throw new UsageError(`--numerics takes ${numericsClasses.join(', ')}, several between commas; got "${unknown}".`);
  return classes;
}

/** `LABEL=FILE`, or a file whose name says what it is. */
function peerFile(text: string): PeerFile {
  const [label, file] = text.includes('=') ? [text.slice(0, text.indexOf('=')), text.slice(text.indexOf('=') + 1)] : ['', text];
  if (file === '') throw new UsageError(`--peer-gguf names no file: "${text}".`);
  return { label: label === '' ? basename(file, extname(file)) : label, file };
}

function withoutDoubles(files: readonly PeerFile[]): readonly PeerFile[] {
  const double = files.find(({ label }, i) => files.findIndex((other) => other.label === label) !== i);
  if (double === undefined) return files;
  throw new UsageError(`Two files are called "${double.label}": name them with --peer-gguf LABEL=FILE.`);
}
