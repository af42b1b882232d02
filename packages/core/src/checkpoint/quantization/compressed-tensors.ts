import { messageOf } from '../../errors.js';
import type { SchemeKey } from '../../quant/quant-scheme.js';
import { isRecord } from '../json-scan.js';
import { parseKvCacheScheme } from './modelopt.js';
import { canonicalModule } from './module-patterns.js';
import type { QuantizationConfig } from './quantization-config.js';
import { quantizationConfigError, stringList, unsupportedQuantization } from './quantization-config.js';

type Section = Readonly<Record<string, unknown>>;

/** Scheme of a group, or the words that say why it cannot be read. */
type GroupScheme = { readonly scheme: SchemeKey } | { readonly unsupported: string };

const maxPatternLength = 2048;

/**
 * The scheme of llm-compressor's exports (docs/numerics.md#compressed-tensors).
 *
 * @param file - for messages; the section is its `quantization_config`.
 * @throws {MoeError} MOE_CHECKPOINT_CONFIG, MOE_UNSUPPORTED_QUANTIZATION
 */
export function parseCompressedTensors(section: Section, file: string): QuantizationConfig {
  checkExtras(section, file);
  const groups = section.config_groups;
  if (!isRecord(groups))
    throw quantizationConfigError(file, 'quantization_config.config_groups', 'expected an object of groups', { actual: groups });
  const status = section.quantization_status;
  if (status !== undefined && status !== 'compressed') {
    throw quantizationConfigError(
      file,
      'quantization_config.quantization_status',
      `expected "compressed", got ${JSON.stringify(status)}; save the model compressed first`,
      { expected: 'compressed', actual: status },
    );
  }
  const targets = new TargetList<GroupScheme & { readonly group: string }>();
  const formats = new Set<string>();
  for (const name in groups) {
    const field = `quantization_config.config_groups.${name}`;
    const group = groups[name];
    if (!isRecord(group)) throw quantizationConfigError(file, field, 'expected an object', { actual: group });
    const format = word(group.format ?? section.format);
    formats.add(format);
    const scheme = { ...schemeOfGroup(group, format), group: name };
    for (const target of stringList(group.targets, file, `${field}.targets`)) targets.add(target, scheme, file, `${field}.targets`);
  }
  const ignored = new TargetList<true>();
  for (const entry of stringList(section.ignore, file, 'quantization_config.ignore')) {
    ignored.add(entry, true, file, 'quantization_config.ignore');
  }
  return {
    summary: `compressed-tensors ${[...formats].join(' + ')}`,
    kvCacheScheme: parseKvCacheScheme(section.kv_cache_scheme, file, 'quantization_config.kv_cache_scheme'),
    schemeOf: (module) => {
      if (ignored.find(module) === true) return undefined;
      const found = targets.find(module);
      if (found === undefined) return undefined;
      if ('scheme' in found) return found.scheme;
      throw unsupportedQuantization(
        `${found.unsupported}, which ${file} (quantization_config.config_groups.${found.group}) gives to ${module},`,
        {
          file,
          module,
          quantization: found.unsupported,
        },
      );
    },
    mayBePlain: () => false,
  };
}

/** Anything else that changes what the stored weights mean. */
function checkExtras(section: Section, file: string): void {
  const { transform_config: transforms, sparsity_config: sparsity } = section;
  if (isRecord(transforms) && Object.keys(transforms).length > 0) {
    throw unsupportedQuantization(`The transform_config of compressed-tensors in ${file}`, {
      file,
      field: 'quantization_config.transform_config',
    });
  }
  const format = isRecord(sparsity) ? (sparsity.format ?? 'dense') : 'dense';
  if (format !== 'dense') {
    throw unsupportedQuantization(`The sparsity format ${JSON.stringify(format)} of compressed-tensors in ${file}`, {
      file,
      field: 'quantization_config.sparsity_config.format',
    });
  }
}

function schemeOfGroup(group: Section, format: string): GroupScheme {
  const { weights, input_activations: input } = group;
  if (!isRecord(weights)) return { unsupported: `compressed-tensors ${format} without weight arguments` };
  const inputs = isRecord(input) ? input : undefined;
  const { num_bits: bits, type, strategy, group_size: groupSize } = weights;
  const described = describeArguments(weights, inputs, format);
  if (type === 'float' && bits === 4 && groupSize === 16) {
    if (inputs === undefined) return { scheme: 'nvfp4.w4a16' };
    return isNvfp4Input(inputs) ? { scheme: 'nvfp4.w4a4' } : { unsupported: described };
  }
  if (type === 'float' && bits === 4 && groupSize === 32 && inputs === undefined) return { scheme: 'mxfp4.w4a16' };
  if (type !== 'float' || bits !== 8 || inputs?.type !== 'float' || inputs.num_bits !== 8) return { unsupported: described };
  const dynamic = inputs.dynamic === true;
  if (strategy === 'tensor' && !dynamic && inputs.strategy === 'tensor') return { scheme: 'fp8.tensor.static' };
  if (strategy === 'tensor' && dynamic && inputs.strategy === 'token') return { scheme: 'fp8.tensor.dynamic' };
  if (strategy === 'channel' && dynamic && inputs.strategy === 'token') return { scheme: 'fp8.channel' };
  const isBlock128 = JSON.stringify(weights.block_structure) === '[128,128]';
  if (strategy === 'block' && isBlock128 && dynamic && inputs.group_size === 128) return { scheme: 'fp8.block128' };
  return { unsupported: described };
}

function isNvfp4Input(inputs: Section): boolean {
  return inputs.type === 'float' && inputs.num_bits === 4 && inputs.group_size === 16;
}

function word(value: unknown): string {
  return typeof value === 'string' ? value : JSON.stringify(value ?? null);
}

function describeArguments(weights: Section, inputs: Section | undefined, format: string): string {
  const describe = ({ type, num_bits: bits, strategy, group_size: groupSize, dynamic }: Section): string =>
    [
      `${word(type).toUpperCase()}${word(bits)}`,
      word(strategy),
      ...(groupSize ? [word(groupSize)] : []),
      dynamic ? 'dynamic' : 'static',
    ].join(' ');
  return `compressed-tensors ${format} (weights ${describe(weights)}, inputs ${inputs === undefined ? 'unquantized' : describe(inputs)})`;
}

/**
 * Entries of `targets` and `ignore`: an exact module name, `re:` and a regular expression anchored at the start, or a class name, of which
 * `Linear` covers every module asked for. A name or expression beats a class; among those the first in file order wins.
 */
class TargetList<T> {
  readonly #exact = new Map<string, { readonly value: T; readonly order: number }>();
  readonly #expressions: { readonly expression: RegExp; readonly value: T; readonly order: number }[] = [];
  #everyLinear: { readonly value: T } | undefined;
  #order = 0;

  add(entry: string, value: T, file: string, field: string): void {
    const order = this.#order++;
    if (entry.startsWith('re:')) {
      this.#expressions.push({ expression: compile(entry.slice(3), file, field), value, order });
    } else if (entry === 'Linear') {
      this.#everyLinear ??= { value };
    } else {
      const name = canonicalModule(entry);
      if (!this.#exact.has(name)) this.#exact.set(name, { value, order });
    }
  }

  find(module: string): T | undefined {
    const name = canonicalModule(module);
    const exact = this.#exact.get(name);
    for (const { expression, value, order } of this.#expressions) {
      if (exact !== undefined && exact.order < order) break;
      if (expression.test(module) || (name !== module && expression.test(name))) return value;
    }
    return (exact ?? this.#everyLinear)?.value;
  }
}

function compile(pattern: string, file: string, field: string): RegExp {
  if (pattern.length > maxPatternLength || hasNestedQuantifiers(pattern)) {
    throw quantizationConfigError(
      file,
      field,
      `the expression ${JSON.stringify(pattern.slice(0, 120))} is longer than ${String(maxPatternLength)} characters or repeats a repetition, which can take for ever to match`,
    );
  }
  try {
    return new RegExp(`^(?:${pattern})`);
  } catch (cause) {
    throw quantizationConfigError(file, field, `the expression ${JSON.stringify(pattern)} cannot be read (${messageOf(cause)})`);
  }
}

/** Finds `(…*…)*` and the like, the expressions that take exponential time; files come from strangers. */
function hasNestedQuantifiers(pattern: string): boolean {
  const repeats: boolean[] = [];
  let inClass = false;
  for (let i = 0; i < pattern.length; i++) {
    const char = pattern[i];
    if (char === '\\') i++;
    else if (inClass) inClass = char !== ']';
    else if (char === '[') inClass = true;
    else if (char === '(') repeats.push(false);
    else if (char === ')') {
      const inner = repeats.pop() ?? false;
      const isRepeated = /^[*+{]/.test(pattern.slice(i + 1));
      if (inner && isRepeated) return true;
      if ((inner || isRepeated) && repeats.length > 0) repeats[repeats.length - 1] = true;
    } else if (char === '*' || char === '+' || char === '{') {
      if (repeats.length > 0) repeats[repeats.length - 1] = true;
    }
  }
  return false;
}
