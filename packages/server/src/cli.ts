import { deviceProfileNames, isMoeError, messageOf, MoeError } from '@moe-server/core';
import { Command, CommanderError, Option } from 'commander';
import { readScopedFlags } from './config/backend-settings.js';
import type { ScopedSetting } from './config/backend-settings.js';
import { optionNames, options } from './config/options.js';
import type { CommandName, OptionName, OptionSpec } from './config/options.js';
import { seconds } from './config/parsers.js';
import type { RawSetting } from './config/parsers.js';
import { environmentName, resolveConfig } from './config/server-config.js';
import type { ServerConfig } from './config/server-config.js';
import { exitStatus, exitStatusOf } from './exit-status.js';
import { parseShape } from './measuring/shape.js';
import { version } from './package-info.js';
import { paint } from './terminal/terminal.js';
import type { Terminal } from './terminal/terminal.js';

/** As commander leaves them. */
interface PlanFlags {
  readonly as?: string;
  readonly explain?: boolean;
  readonly json?: boolean;
  readonly out?: string;
  readonly diff?: string;
}

interface BenchFlags {
  readonly kernels?: boolean;
  readonly shape?: string;
  readonly tokens?: string;
  readonly backend?: readonly string[];
  readonly scheme?: readonly string[];
  readonly json?: boolean;
}

/**
 * Runs one command line.
 *
 * @param args - without the program's name.
 * @returns the exit status, as DESIGN and docs list them.
 */
export async function run(args: readonly string[], environment: NodeJS.ProcessEnv, terminal: Terminal): Promise<number> {
  let status: number = exitStatus.ok;
  try {
    const { rest, scoped } = readScopedFlags(args);
    const program = createProgram(environment, scoped, terminal, (result) => {
      status = result;
    });
    await program.parseAsync([...rest], { from: 'user' });
    return status;
  } catch (thrown) {
    if (thrown instanceof CommanderError) return thrown.exitCode === 0 ? exitStatus.ok : exitStatus.usage;
    const text = isMoeError(thrown) ? thrown.message : thrown instanceof Error ? (thrown.stack ?? thrown.message) : messageOf(thrown);
    terminal.err.write(`${paint(terminal.err, 'red', 'error')}: ${text}\n`);
    return exitStatusOf(thrown);
  }
}

/** Commands load what they need: a start should not wait for the modules of the others. */
function createProgram(
  environment: NodeJS.ProcessEnv,
  scopedFlags: readonly ScopedSetting[],
  terminal: Terminal,
  finish: (status: number) => void,
): Command {
  const program = new Command('moe-server')
    .description(
      'Serves mixture-of-experts models over an OpenAI-compatible API. Every layer runs on the kernel that fits its quantization.',
    )
    .version(version, '--version', 'print the version')
    .helpOption('-h, --help', 'print this help; after a command, its flags')
    .helpCommand(false)
    .exitOverride()
    .configureOutput({ writeOut: (text) => terminal.out.write(text), writeErr: (text) => terminal.err.write(text) })
    .addHelpText('after', examples);

  /** Merges the sources of one command's settings. */
  const configOf = (command: Command): ServerConfig => {
    const flags: Partial<Record<OptionName, RawSetting>> = {};
    for (const name of optionNames) {
      if (command.getOptionValueSource(name) === 'cli') flags[name] = command.getOptionValue(name) as RawSetting;
    }
    const file = (command.getOptionValue('config') as string | undefined) ?? environment.MOE_CONFIG;
    return resolveConfig({ flags, scopedFlags, environment, file });
  };

  addSettings(program.command('start'), 'start')
    .description('load a model and serve it')
    .addHelpText('after', startHelp)
    .action(async (_options, command: Command) => {
      const { start } = await import('./commands/start.js');
      finish(await start(configOf(command), terminal));
    });

  addSettings(program.command('plan'), 'plan')
    .description('show which kernel would serve which layer, without reading a weight')
    .option('--as <device>', `plan for another device: ${deviceProfileNames.join(', ')}`)
    .option('--explain', 'list the refusals of every group of layers')
    .option('--json', 'print the whole plan as JSON')
    .option('--out <file>', 'keep the plan, for start --plan and plan --diff')
    .option('--diff <file>', 'compare with a plan that was kept')
    .addHelpText('after', planHelp)
    .action(async (given: PlanFlags, command: Command) => {
      const planOptions = { ...given, explain: given.explain ?? false, json: given.json ?? false };
      const { plan } = await import('./commands/plan.js');
      finish(await plan(configOf(command), planOptions, terminal));
    });

  addSettings(program.command('calibrate'), 'calibrate')
    .description('time the kernels that could serve a model here; start and plan then rank by it')
    .option('--budget <seconds>', 'time for all measurements together (default: 20)')
    .option('--json', 'print what was measured as JSON')
    .action(async (given: { budget?: string; json?: boolean }, command: Command) => {
      const budgetMs = 1000 * budgetOf(given.budget ?? '20');
      const { calibrate } = await import('./commands/calibrate.js');
      finish(await calibrate(configOf(command), { json: given.json ?? false, budgetMs }, terminal));
    });

  addSettings(program.command('bench'), 'bench')
    .description('time single kernels against what this machine can read and multiply')
    .option('--kernels', 'time every usable kernel on the layers of a model, or of a shape, with random weights')
    .option('--shape <sizes>', 'hidden size, inner size of an expert, experts, experts per token in place of a model: 2048,768,128,8')
    .option('--tokens <list>', 'tokens of a call (default: 1,8,64,512)')
    .addOption(listOption('--backend <name>', 'only kernels of this backend; repeatable'))
    .addOption(listOption('--scheme <key>', 'only layers of this scheme, as nvfp4.w4a4; repeatable'))
    .option('--json', 'print what was measured as JSON')
    .addHelpText('after', benchHelp)
    .action(async (given: BenchFlags, command: Command) => {
      if (given.kernels !== true) throw new MoeError('MOE_USAGE', benchWithoutKernels, { setting: 'kernels' });
      if (given.shape !== undefined && command.getOptionValueSource('model') === 'cli')
        throw new MoeError('MOE_USAGE', '--model and --shape exclude each other: kernels are timed on the layers of one or the other.', {});
      const benchOptions = {
        json: given.json ?? false,
        shape: given.shape === undefined ? undefined : parseShape(given.shape),
        sizes: tokenSizesOf(given.tokens ?? '1,8,64,512'),
        backends: given.backend ?? [],
        schemes: given.scheme ?? [],
      };
      const { bench } = await import('./commands/bench.js');
      finish(await bench(configOf(command), benchOptions, terminal));
    });

  addSettings(program.command('backends'), 'backends')
    .description('list plugins, their rules, and the devices they run on')
    .option('--json', 'print them as JSON')
    .action(async (given: { json?: boolean }, command: Command) => {
      const { backends } = await import('./commands/backends.js');
      finish(await backends(configOf(command), { json: given.json ?? false }, terminal));
    });
  return program;
}

/** @throws {MoeError} MOE_USAGE. */
function budgetOf(raw: string): number {
  try {
    return seconds(raw);
  } catch (cause) {
    throw new MoeError('MOE_USAGE', `--budget: ${messageOf(cause)}`, { setting: 'budget' }, { cause });
  }
}

/** Ascending, each once. @throws {MoeError} MOE_USAGE. */
function tokenSizesOf(text: string): number[] {
  const sizes = text.split(',').map(Number);
  if (sizes.every((size) => Number.isSafeInteger(size) && size >= 1 && size <= maxBenchTokens))
    return [...new Set(sizes)].sort((a, b) => a - b);
  const message = `--tokens takes whole numbers from 1 to ${String(maxBenchTokens)} between commas, as in --tokens 1,8,64,512; got "${text}".`;
  throw new MoeError('MOE_USAGE', message, { setting: 'tokens' });
}

/** Larger calls are cut into chunks by every server. */
const maxBenchTokens = 8192;

/** A flag that may be given several times, or once with commas. */
function listOption(flags: string, description: string): Option {
  return new Option(flags, description).argParser((value: string, before?: readonly string[]) => [...(before ?? []), ...value.split(',')]);
}

function addSettings(command: Command, commandName: CommandName): Command {
  for (const name of optionNames) {
    const spec: OptionSpec = options[name];
    if ((spec.commands ?? ['start']).includes(commandName)) command.addOption(toOption(name, spec));
  }
  return command
    .addOption(new Option('--config <file>', 'JSON file with flag names as keys; flags and environment win over it').helpGroup('Other:'))
    .helpOption('-h, --help', 'print this help')
    .showSuggestionAfterError()
    .exitOverride();
}

/** The value stays as it was typed: parsing is the same for all sources. */
function toOption(name: OptionName, spec: OptionSpec): Option {
  // A switch has the name of what it changes: what is on by default is turned off.
  const flags =
    spec.placeholder !== undefined
      ? `--${spec.name} <${spec.placeholder}>`
      : spec.default === true
        ? `--no-${spec.name}`
        : `--${spec.name}`;
  const byDefault = spec.defaultText ?? (typeof spec.default === 'string' || typeof spec.default === 'number' ? String(spec.default) : '');
  const suffix = spec.placeholder === undefined || byDefault === '' ? '' : ` (default: ${byDefault})`;
  const option = new Option(flags, spec.description + suffix).helpGroup(`${spec.group}:`);
  // The key under which the value is kept is that of the table, whatever commander makes of the flag.
  option.attributeName = () => name;
  if (spec.isList === true)
    option.argParser((value: string, before: unknown) => [...(Array.isArray(before) ? (before as string[]) : []), value]);
  return option;
}

const examples = `
Examples:
  moe-server start                                  serve the bundled model on http://127.0.0.1:8000
  moe-server start --model ./Qwen3-30B-A3B-NVFP4    serve a checkpoint from a folder
  moe-server plan --model DIR --explain             what would run where, and why nothing else would
  moe-server plan --model DIR --as gb10             the same for a machine you do not have
  moe-server calibrate --model DIR                  time its kernels on this machine; start and plan then rank by it
  moe-server bench --kernels --model DIR            the same kernels against what this machine can do at most
  moe-server start --help                           all flags`;

const benchWithoutKernels =
  'bench times single kernels: say moe-server bench --kernels. What a whole model does shows in "npm run bench -- cpu" of the repository.';

const benchHelp = `
Nothing but headers of the model is read. Each kernel runs in a process that it may take down: a fault costs its line, no more.

Examples:
  moe-server bench --kernels --backend cpu
  moe-server bench --kernels --model DIR --tokens 1,4,16 --threads 8
  moe-server bench --kernels --shape 2048,768,128,8 --scheme nvfp4.w4a4 --json`;

const planHelp = `
Exit status: 0 every layer is served, 2 some are not or they do not fit into memory, 3 the model folder, 4 a plugin that was named cannot be
used, 64 usage.

Examples:
  moe-server plan --as gb10 --moe-backend b12x --fp8-moe-backend cutlass
  moe-server plan --model DIR --as h100 --tensor-parallel-size 8 --enable-expert-parallel
  moe-server plan --model DIR --out plan.lock.json && moe-server start --model DIR --plan plan.lock.json
  moe-server plan --model DIR --diff plan.lock.json`;

const startHelp = `
Every flag can also stand in the environment (--max-model-len is ${environmentName('maxModelLen')}, --api-key is ${environmentName('apiKey')}) or in the file of
--config. Flags win over the environment, the environment over the file.

Exit status: 0 stopped as asked, 1 a fault, 2 layers that no kernel serves, 3 the model folder, 4 a plugin that was named cannot be used,
5 the engine died too often, 64 usage.

Examples:
  moe-server start --port 9000 --served-model-name dictionary
  moe-server start --model DIR --kv-cache-dtype fp8 --kv-cache-memory-bytes 4GiB
  moe-server start --model DIR --numerics.nvfp4 wider --moe-backend '!cpu'
  MOE_API_KEY=secret moe-server start --host 0.0.0.0`;
