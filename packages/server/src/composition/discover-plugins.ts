import { existsSync, readFileSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, isAbsolute, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { MoeError, messageOf } from '@moe-server/core';

/** A plugin package that was found and not imported yet. */
export interface PluginCandidate {
  /** Package name or path, for messages. */
  readonly source: string;
  /** What import() takes; undefined when it could not be resolved. */
  readonly url: string | undefined;
  /** Somebody named it: that it cannot be used ends the start. */
  readonly isRequired: boolean;
  readonly problem?: string;
}

export interface DiscoveryOptions {
  /** Folder whose nearest package.json is read. */
  readonly directory: string;
  /** Names or paths from `--plugin`. */
  readonly named: readonly string[];
  /** False for `--no-plugins`: only the named ones. */
  readonly isEnabled: boolean;
}

/**
 * Finds plugins: direct dependencies of the nearest package.json whose own package.json has a `moe` field, and those that are named.
 * To install a package directly is consent to its native code; nothing transitive is ever loaded, and a `moe` field in the project
 * itself with `"plugins": [...]` narrows the list further.
 *
 * @param builtIn - packages that are loaded anyway.
 */
export function discoverPlugins({ directory, named, isEnabled }: DiscoveryOptions, builtIn: readonly string[]): PluginCandidate[] {
  const candidates = named.map((name) => resolveNamed(name, directory));
  const project = nearestPackage(directory);
  if (!isEnabled || project === undefined) return candidates;
  const { file, content } = project;
  const requireFrom = createRequire(pathToFileURL(file));
  const names = Object.keys({ ...record(content.dependencies), ...record(content.optionalDependencies) }).sort();
  const listed = record(content.moe).plugins;
  for (const name of names) {
    if (builtIn.includes(name) || named.includes(name)) continue;
    if (Array.isArray(listed) && !listed.includes(name)) continue;
    const packageFile = packageFileOf(name, dirname(file));
    if (packageFile === undefined || !hasMoeField(packageFile)) continue;
    candidates.push(resolveFrom(requireFrom, name, false));
  }
  return candidates;
}

function resolveNamed(name: string, directory: string): PluginCandidate {
  const isPath = name.startsWith('.') || isAbsolute(name);
  if (!isPath) return resolveFrom(createRequire(pathToFileURL(join(directory, 'package.json'))), name, true);
  const path = resolve(directory, name);
  if (!existsSync(path)) return { source: name, url: undefined, isRequired: true, problem: `${path} does not exist` };
  // A folder is a package; require knows how to enter one.
  return statSync(path).isDirectory()
    ? { ...resolveFrom(createRequire(pathToFileURL(join(path, 'package.json'))), path, true), source: name }
    : { source: name, url: pathToFileURL(path).href, isRequired: true };
}

function resolveFrom(requireFrom: NodeJS.Require, name: string, isRequired: boolean): PluginCandidate {
  try {
    return { source: name, url: pathToFileURL(resolvePackage(requireFrom, name)).href, isRequired };
  } catch (cause) {
    return { source: name, url: undefined, isRequired, problem: messageOf(cause) };
  }
}

/** The file that `import name` would load. require.resolve refuses packages that only have an `import` condition, so the manifest is asked. */
function resolvePackage(requireFrom: NodeJS.Require, name: string): string {
  try {
    return requireFrom.resolve(name);
  } catch (cause) {
    const roots = isAbsolute(name) ? [dirname(name)] : (requireFrom.resolve.paths(name) ?? []);
    for (const root of roots) {
      const folder = isAbsolute(name) ? name : join(root, name);
      const entry = entryOf(join(folder, 'package.json'));
      if (entry !== undefined) return join(folder, entry);
    }
    throw cause;
  }
}

function entryOf(packageFile: string): string | undefined {
  const content = readPackage(packageFile);
  if (content === undefined) return undefined;
  const main = record(content.exports)['.'] ?? content.exports;
  const conditions = record(main);
  for (const entry of [main, conditions.import, conditions.default, record(conditions.import).default, content.main]) {
    if (typeof entry === 'string') return entry;
  }
  return undefined;
}

function packageFileOf(name: string, directory: string): string | undefined {
  for (let folder = directory; ; folder = dirname(folder)) {
    const file = join(folder, 'node_modules', name, 'package.json');
    if (existsSync(file)) return file;
    if (dirname(folder) === folder) return undefined;
  }
}

function hasMoeField(packageFile: string): boolean {
  return readPackage(packageFile)?.moe !== undefined;
}

function nearestPackage(directory: string): { readonly file: string; readonly content: Readonly<Record<string, unknown>> } | undefined {
  for (let folder = resolve(directory); ; folder = dirname(folder)) {
    const file = join(folder, 'package.json');
    const content = existsSync(file) ? readPackage(file) : undefined;
    if (content !== undefined) return { file, content };
    if (dirname(folder) === folder) return undefined;
  }
}

function readPackage(file: string): Readonly<Record<string, unknown>> | undefined {
  try {
    return record(JSON.parse(readFileSync(file, 'utf8')));
  } catch {
    // Not ours to complain about: a package without a readable manifest is no plugin.
    return undefined;
  }
}

function record(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Readonly<Record<string, unknown>>) : {};
}

/** The default export of a candidate's module. @throws {MoeError} MOE_PLUGIN_LOAD. */
export async function importPlugin({ source, url, problem }: PluginCandidate): Promise<unknown> {
  if (url === undefined) {
    const message = `The plugin ${source} was not found: ${problem ?? 'it does not resolve'}. Install it, or correct --plugin.`;
    throw new MoeError('MOE_PLUGIN_LOAD', message, { source });
  }
  try {
    return ((await import(url)) as { readonly default?: unknown }).default;
  } catch (cause) {
    throw new MoeError('MOE_PLUGIN_LOAD', `The plugin ${source} cannot be imported: ${messageOf(cause)}`, { source }, { cause });
  }
}
