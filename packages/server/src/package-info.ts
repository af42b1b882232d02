import { createRequire } from 'node:module';
import { dirname } from 'node:path';

const require = createRequire(import.meta.url);

/** Of this package. */
export const { version } = require('../../package.json') as { readonly version: string };

/** Folder of the model that is served when none is named. */
export function bundledModel(): string {
  return dirname(require.resolve('@moe-server/model-pocket-dictionary/package.json'));
}
