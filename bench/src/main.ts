import { cpuBench } from './cpu.js';
import { planBench } from './plan.js';
import { startBench } from './start.js';
import { UsageError } from './arguments.js';

const help = `Measures this project.

  npm run bench -- cpu [options]      prefill and decode, against what the machine could do in the same minute, and against other engines
  npm run bench -- plan [options]     time and memory of planning checkpoints in their real sizes
  npm run bench -- start [options]    from the command "moe-server start" to the first token

Each has its own --help. Single kernels: moe-server bench --kernels.`;

const benches: Readonly<Record<string, (args: string[]) => Promise<void>>> = { cpu: cpuBench, plan: planBench, start: startBench };

const [name, ...args] = process.argv.slice(2);
try {
  const bench = name === undefined ? undefined : benches[name];
  if (bench !== undefined) await bench(args);
  else if (name === undefined || name === '--help' || name === '-h') console.log(help);
  else throw new UsageError(`There is no bench "${name}"; there are ${Object.keys(benches).join(', ')}.`);
} catch (error) {
  console.error(error instanceof Error ? error.message : String(error));
  if (error instanceof UsageError) console.error(`See npm run bench -- ${name !== undefined && name in benches ? `${name} ` : ''}--help.`);
  process.exitCode = error instanceof UsageError ? 64 : 1;
}
