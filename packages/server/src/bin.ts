#!/usr/bin/env node
import { run } from './cli.js';

// A reader that goes away (`moe-server plan | head`) ends the command, it is no fault of it.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  process.exit(error.code === 'EPIPE' ? 0 : 1);
});
process.stderr.on('error', () => undefined);

const status = await run(process.argv.slice(2), process.env, { out: process.stdout, err: process.stderr });
// Pipes are written in the background; the process ends when they are.
process.exitCode = status;
process.stdout.write('', () => process.exit(status));
