import { run } from './cli.js';

const args = process.argv.slice(2);
// A reader that goes away (`moe-server plan | head`) ends a command that only prints; a server goes on without being watched.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (args[0] !== 'start') process.exit(error.code === 'EPIPE' ? 0 : 1);
});
process.stderr.on('error', () => undefined);

const status = await run(args, process.env, { out: process.stdout, err: process.stderr });
// Pipes are written in the background; the process ends when they are.
process.exitCode = status;
process.stdout.write('', () => process.exit(status));
