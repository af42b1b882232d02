import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { MoeError, messageOf } from './errors.js';

export interface NativeAddonOptions {
  /** The package that the addon belongs to: `@moe-server/backend-cpu`. */
  readonly packageName: string;
  /** `import.meta.url` of any module of that package. */
  readonly packageUrl: string;
  /** File name without `.node`: `backend_cpu`. */
  readonly addonName: string;
  /** Environment variable that may name another file: `MOE_BACKEND_CPU_ADDON`. When it is set, nothing else is tried. */
  readonly envVariable: string;
}

/** One place that was tried. */
interface Attempt {
  readonly place: string;
  readonly reason: string;
}

/** Path of the addon that each package has loaded in this process. */
const loadedAddons = new Map<string, string>();

/**
 * The addons that {@link loadNativeAddon} has loaded in this process, by package. What was measured or verified with them holds for these
 * files only.
 */
export function loadedNativeAddons(): ReadonlyMap<string, string> {
  return new Map([...loadedAddons].sort(([a], [b]) => (a < b ? -1 : 1)));
}

/**
 * Loads the native half of a package. Tried in this order:
 *
 * 1. the file that the environment variable names: whoever sets it wants that file and no other;
 * 2. `build/Release/<addonName>.node` beside the package's package.json, what `npm run build:native` makes;
 * 3. `<addonName>.node` in the platform package, `<packageName>-linux-x64` (`-linux-x64-musl` where libc is musl).
 *
 * @returns the addon's exports; the caller knows their type.
 * @throws {MoeError} MOE_PLUGIN_ADDON; `details.attempts` lists every place with its reason.
 */
export function loadNativeAddon(options: NativeAddonOptions): unknown {
  const { packageName, packageUrl, addonName, envVariable } = options;
  const require = createRequire(packageUrl);
  const file = `${addonName}.node`;
  const attempts: Attempt[] = [];
  const attempt = (place: string): unknown => {
    try {
      const loaded = require(place) as unknown;
      loadedAddons.set(packageName, require.resolve(place));
      return loaded;
    } catch (error) {
      attempts.push({ place, reason: reasonOf(error) });
      return undefined;
    }
  };

  const override = process.env[envVariable];
  if (override !== undefined && override !== '') {
    const loaded = attempt(resolve(override));
    if (loaded !== undefined) return loaded;
    throw failure(packageName, attempts, `${envVariable} is set, so nothing else was tried; correct or unset it.`);
  }

  const root = packageRoot(packageUrl, packageName);
  if (root === undefined) attempts.push({ place: packageUrl, reason: `no package.json of ${packageName} above it` });
  else {
    const loaded = attempt(join(root, 'build', 'Release', file));
    if (loaded !== undefined) return loaded;
  }
  const platformPackage = `${packageName}-${platformSuffix()}`;
  const loaded = attempt(`${platformPackage}/${file}`);
  if (loaded !== undefined) return loaded;
  throw failure(
    packageName,
    attempts,
    `In a clone, run "npm run build:native"; elsewhere, install ${platformPackage} (npm leaves it out with --omit=optional or when the lock file was made on another platform).`,
  );
}

/** `linux-x64`, `darwin-arm64`, `linux-x64-musl`: the end of a platform package's name. */
export function platformSuffix(): string {
  return `${process.platform}-${process.arch}${isMusl() ? '-musl' : ''}`;
}

function failure(packageName: string, attempts: readonly Attempt[], remedy: string): MoeError {
  const tried = attempts.map(({ place, reason }) => `\n  ${place}: ${reason}`).join('');
  return new MoeError('MOE_PLUGIN_ADDON', `The native addon of ${packageName} cannot be loaded. Tried:${tried}\n${remedy}`, {
    packageName,
    attempts,
    remedy,
  });
}

/** Node appends the require stack to "Cannot find module"; the first line says it all. */
function reasonOf(error: unknown): string {
  return messageOf(error).split('\n', 1)[0] ?? 'unknown reason';
}

/** The nearest folder upwards whose package.json has this name. */
function packageRoot(packageUrl: string, packageName: string): string | undefined {
  let folder = dirname(fileURLToPath(packageUrl));
  for (;;) {
    if (packageNameIn(folder) === packageName) return folder;
    const parent = dirname(folder);
    if (parent === folder) return undefined;
    folder = parent;
  }
}

function packageNameIn(folder: string): unknown {
  try {
    return (JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { readonly name?: unknown }).name;
  } catch {
    // No package.json here, or one that is not JSON: not the one that is looked for.
    return undefined;
  }
}

/** Node reports the version of glibc it runs on; on Linux without one it runs on musl. */
function isMusl(): boolean {
  if (process.platform !== 'linux') return false;
  const report = process.report.getReport() as { readonly header?: { readonly glibcVersionRuntime?: string } };
  return report.header?.glibcVersionRuntime === undefined;
}
