import type { SchemeKey } from '../../quant/quant-scheme.js';
import type { KvCacheScheme } from '../../kv-cache.js';
import { isRecord } from '../json-scan.js';
import { canonicalModule, ModulePatterns } from './module-patterns.js';
import type { QuantizationConfig } from './quantization-config.js';
import { quantizationConfigError, stringList, unquantized, unsupportedQuantization } from './quantization-config.js';

/** docs/numerics.md#modelopt lists the tensors of each. */
const algorithms: Readonly<Record<string, SchemeKey>> = {
  NVFP4: 'nvfp4.w4a4',
  W4A16_NVFP4: 'nvfp4.w4a16',
  FP8: 'fp8.tensor.static',
  FP8_PER_CHANNEL_PER_TOKEN: 'fp8.channel',
  FP8_PB_WO: 'fp8.block128',
  FP8_BLOCK: 'fp8.block128',
  FP8_BLOCK_SCALES: 'fp8.block128',
};

const mixed = 'MIXED_PRECISION';

/** A modelopt section and the file it came from. */
export interface ModeloptSource {
  readonly section: Readonly<Record<string, unknown>>;
  readonly file: string;
}

/**
 * Whether `section` was written by modelopt: `quant_method` is missing in files of 2025, `producer` in others.
 */
export function isModelopt(section: Readonly<Record<string, unknown>>): boolean {
  const { producer, quant_method: method } = section;
  if (typeof method === 'string') return method.startsWith('modelopt');
  return (isRecord(producer) && producer.name === 'modelopt') || typeof section.quant_algo === 'string' || isRecord(section.quantization);
}

/**
 * modelopt's scheme, from `quantization_config` of config.json, hf_quant_config.json, or both: the first source decides, the second fills
 * what the first leaves out (seen: kv_cache_quant_algo). `config_groups` is not read: published files have it wrong.
 *
 * @throws {MoeError} MOE_CHECKPOINT_CONFIG, MOE_UNSUPPORTED_QUANTIZATION
 */
export function parseModelopt(sources: readonly ModeloptSource[]): QuantizationConfig {
  const flat = sources.map(({ section, file }) => ({
    file,
    section: isRecord(section.quantization) ? section.quantization : section,
  }));
  const lookup = (...fields: readonly string[]): { value: unknown; file: string; field: string } => {
    for (const { section, file } of flat) {
      for (const field of fields)
        if (section[field] !== undefined && section[field] !== null) return { value: section[field], file, field };
    }
    return { value: undefined, file: flat[0]?.file ?? '', field: fields[0] ?? '' };
  };
  const kv = lookup('kv_cache_quant_algo', 'kv_cache_scheme');
  const kvCacheScheme = parseModeloptKvCache(kv.value, kv.file, kv.field);
  const { value: algorithm, file, field } = lookup('quant_algo');
  // Exports that quantize nothing but the KV cache.
  if (algorithm === undefined && flat.some(({ section }) => section.quant_algo === null)) {
    return { ...unquantized, summary: 'modelopt, KV cache only', kvCacheScheme };
  }
  if (typeof algorithm !== 'string') {
    throw quantizationConfigError(file, field, `expected the name of an algorithm (${[...Object.keys(algorithms), mixed].join(', ')})`, {
      actual: algorithm,
    });
  }
  const excludes = lookup('exclude_modules', 'ignore');
  const excluded = new ModulePatterns(stringList(excludes.value, excludes.file, excludes.field));
  checkGroupSize(algorithm, lookup('group_size').value, file, 'group_size');
  const summary = `modelopt ${algorithm}`;

  if (algorithm !== mixed) {
    const scheme = schemeOfAlgorithm(algorithm, file);
    return {
      summary,
      kvCacheScheme,
      schemeOf: (module) => (excluded.matches(module) ? undefined : scheme),
      mayBePlain: (module) => module === 'lm_head' || excluded.isPartOf(module),
    };
  }
  const layers = lookup('quantized_layers');
  const listed = parseQuantizedLayers(layers.value, layers.file);
  return { summary, kvCacheScheme, schemeOf: listed, mayBePlain: () => false };
}

/**
 * `quantized_layers`: a module is what its entry says; what has none is not quantized. Experts may be listed one by one or by the module
 * that holds them all.
 *
 * @returns the lookup; it throws MOE_UNSUPPORTED_QUANTIZATION for a module with an algorithm that cannot be read, so that modules nobody
 *   uses (a vision tower) do not stand in the way.
 */
export function parseQuantizedLayers(value: unknown, file: string): (module: string) => SchemeKey | undefined {
  if (!isRecord(value)) {
    throw quantizationConfigError(
      file,
      'quantized_layers',
      `expected an object {module: {"quant_algo": …}}, because quant_algo is ${mixed}`,
      {
        actual: value,
      },
    );
  }
  const algorithmOf = new Map<string, string>();
  for (const module in value) {
    const entry = value[module];
    const algorithm = isRecord(entry) ? entry.quant_algo : undefined;
    if (!isRecord(entry) || typeof algorithm !== 'string') {
      throw quantizationConfigError(file, `quantized_layers.${module}`, 'expected an object with "quant_algo"', { actual: entry });
    }
    checkGroupSize(algorithm, entry.group_size, file, `quantized_layers.${module}.group_size`);
    algorithmOf.set(canonicalModule(module), algorithm);
  }
  return (module) => {
    const name = canonicalModule(module);
    const algorithm = algorithmOf.get(name) ?? algorithmOfExperts(algorithmOf, name);
    return algorithm === undefined ? undefined : schemeOfAlgorithm(algorithm, file, module);
  };
}

/** `….experts.7.gate_proj` by the entry of `….experts.7` or of `….experts`. */
function algorithmOfExperts(algorithmOf: ReadonlyMap<string, string>, name: string): string | undefined {
  const at = name.lastIndexOf('.experts');
  if (at < 0) return undefined;
  const experts = name.slice(0, at + '.experts'.length);
  const expertEnd = name.indexOf('.', experts.length + 1);
  return (expertEnd < 0 ? undefined : algorithmOf.get(name.slice(0, expertEnd))) ?? algorithmOf.get(experts);
}

function schemeOfAlgorithm(algorithm: string, file: string, module?: string): SchemeKey {
  const scheme = Object.hasOwn(algorithms, algorithm) ? algorithms[algorithm] : undefined;
  if (scheme !== undefined) return scheme;
  const where = module === undefined ? `in ${file}` : `of ${module} in ${file}`;
  throw unsupportedQuantization(`The modelopt algorithm ${algorithm} ${where}`, {
    file,
    quantization: algorithm,
    ...(module === undefined ? {} : { module }),
  });
}

function checkGroupSize(algorithm: string, groupSize: unknown, file: string, field: string): void {
  if (algorithm.includes('NVFP4') && groupSize !== undefined && groupSize !== null && groupSize !== 16) {
    throw quantizationConfigError(file, field, `NVFP4 has groups of 16, got ${JSON.stringify(groupSize)}`, {
      expected: 16,
      actual: groupSize,
    });
  }
}

/** `"FP8"`, or the object that compressed-tensors uses. */
function parseModeloptKvCache(value: unknown, file: string, field: string): KvCacheScheme {
  if (typeof value !== 'string') return parseKvCacheScheme(value, file, field);
  if (value === 'FP8') return 'fp8';
  if (value === 'NVFP4') return 'nvfp4';
  throw unsupportedQuantization(`The KV cache scheme ${value} in ${file}`, { file, field, quantization: value });
}

/** The object form, `{num_bits: 8, type: "float"}`; absent or null means none. */
export function parseKvCacheScheme(value: unknown, file: string, field: string): KvCacheScheme {
  if (value === undefined || value === null) return 'none';
  if (!isRecord(value)) throw quantizationConfigError(file, field, 'expected an object or null', { actual: value });
  const { num_bits: numBits, type, strategy } = value;
  const perTensor = strategy === undefined || strategy === null || strategy === 'tensor' || strategy === 'tensor_group';
  if (type === 'float' && numBits === 8 && perTensor) return 'fp8';
  if (type === 'float' && numBits === 4 && perTensor) return 'nvfp4';
  throw unsupportedQuantization(`The KV cache scheme ${JSON.stringify({ num_bits: numBits, type, strategy })} in ${file}`, { file, field });
}
