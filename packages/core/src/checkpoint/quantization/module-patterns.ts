/**
 * The name of a module without the prefix that multimodal wrappers add, so that `model.language_model.layers.0`, the older
 * `language_model.model.layers.0` and `model.layers.0` of text-only exports are one name. Exporters and files do not agree on it.
 */
export function canonicalModule(name: string): string {
  if (name.startsWith('model.language_model.')) return `model.${name.slice('model.language_model.'.length)}`;
  if (name.startsWith('language_model.model.')) return name.slice('language_model.'.length);
  if (name.startsWith('language_model.lm_head')) return name.slice('language_model.'.length);
  return name;
}

interface Wildcard {
  /** What stands before the first wildcard: most modules differ there already. */
  readonly literal: string;
  readonly pattern: string;
  readonly below: string;
}

/**
 * A list of module names as exclusion lists have them: exact names and shell-style wildcards, each covering the module and everything below.
 */
export class ModulePatterns {
  readonly #exact = new Set<string>();
  readonly #wildcards: Wildcard[] = [];

  constructor(patterns: readonly string[]) {
    for (const entry of patterns) {
      const pattern = canonicalModule(entry);
      const wildcardAt = pattern.search(/[*?]/);
      if (wildcardAt < 0) this.#exact.add(pattern);
      else this.#wildcards.push({ literal: pattern.slice(0, wildcardAt), pattern, below: `${pattern}.*` });
    }
  }

  /** Whether an entry names the module or one above it. */
  matches(module: string): boolean {
    const name = canonicalModule(module);
    for (let end = name.length; end > 0; end = name.lastIndexOf('.', end - 1)) {
      if (this.#exact.has(name.slice(0, end))) return true;
    }
    return this.#wildcards.some(
      ({ literal, pattern, below }) => name.startsWith(literal) && (matchesGlob(pattern, name) || matchesGlob(below, name)),
    );
  }

  /** Whether an entry is a part of the module's name, as some loaders compare. */
  isPartOf(module: string): boolean {
    const name = canonicalModule(module);
    for (const entry of this.#exact) if (name.includes(entry)) return true;
    return false;
  }
}

/** `*` stands for any characters, `?` for one. Linear in practice, quadratic at worst, whatever the pattern. */
export function matchesGlob(pattern: string, text: string): boolean {
  let p = 0;
  let t = 0;
  let starAt = -1;
  let retryAt = 0;
  while (t < text.length) {
    if (p < pattern.length && pattern[p] === '*') {
      starAt = p++;
      retryAt = t;
    } else if (p < pattern.length && (pattern[p] === '?' || pattern[p] === text[t])) {
      p++;
      t++;
    } else if (starAt >= 0) {
      p = starAt + 1;
      t = ++retryAt;
    } else {
      return false;
    }
  }
  while (pattern[p] === '*') p++;
  return p === pattern.length;
}
