import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { MoeError, messageOf } from '@moe-server/core';

export function loadNativeAddon(): unknown {
  const require = createRequire(import.meta.url);
  const attempts = [
    process.env['MOE_BACKEND_CPU_ADDON'],
    fileURLToPath(new URL('../../build/Release/backend_cpu.node', import.meta.url)),
    '@moe-server/backend-cpu-linux-x64',
  ].filter((place) => place !== undefined);
  const failures: string[] = [];
  for (const place of attempts) {
    try {
      return require(place) as unknown;
    } catch (error) {
      failures.push(`${place}: ${messageOf(error)}`);
    }
  }
  throw new MoeError('MOE_PLUGIN_ADDON', `The native addon of the cpu backend could not be loaded. Tried ${failures.join('; ')}.`);
}
