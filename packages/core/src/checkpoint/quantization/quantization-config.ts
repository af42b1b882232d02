import type { SchemeKey } from '../../quant/quant-scheme.js';
import { MoeError } from '../../errors.js';
import type { KvCacheScheme } from '../../kv-cache.js';

/** What a checkpoint's configuration says of the quantization of its modules, whoever wrote it. */
export interface QuantizationConfig {
  /** For people: `modelopt MIXED_PRECISION`. */
  readonly summary: string;
  readonly kvCacheScheme: KvCacheScheme;
  /**
   * The scheme that the configuration gives a module, by its name in the checkpoint; undefined when it is not quantized.
   *
   * @throws {MoeError} MOE_UNSUPPORTED_QUANTIZATION when it is one that cannot be read.
   */
  readonly schemeOf: (module: string) => SchemeKey | undefined;
  /**
   * Whether loaders in the field take the module as not quantized although {@link schemeOf} says otherwise (lists of exclusions that were
   * written for substring matching, output heads that exporters leave out without saying so). Such a module may be stored plain.
   */
  readonly mayBePlain: (module: string) => boolean;
}

/** No quantization at all. */
export const unquantized: QuantizationConfig = {
  summary: 'none',
  kvCacheScheme: 'none',
  schemeOf: () => undefined,
  mayBePlain: () => true,
};

const supported =
  'modelopt (NVFP4, W4A16_NVFP4, FP8, FP8_PER_CHANNEL_PER_TOKEN, FP8 in 128x128 blocks, MIXED_PRECISION of these), ' +
  'compressed-tensors (nvfp4-pack-quantized, float-quantized per tensor, channel or 128x128 block, mxfp4-pack-quantized, mixed-precision of these), ' +
  'Hugging Face fp8, MXFP4 of gpt-oss, and plain bf16 or f16';

/** @param what - names the scheme and where it is asked for; the start of a sentence. */
export function unsupportedQuantization(what: string, details: Readonly<Record<string, unknown>> = {}): MoeError {
  return new MoeError('MOE_UNSUPPORTED_QUANTIZATION', `${what} is not supported. Supported are ${supported}.`, details);
}

/** @param field - path within the file, `quantization_config.ignore`. */
export function quantizationConfigError(
  file: string,
  field: string,
  reason: string,
  details: Readonly<Record<string, unknown>> = {},
): MoeError {
  return new MoeError('MOE_CHECKPOINT_CONFIG', `${file}: ${field}: ${reason}.`, { file, field, ...details });
}

/** A list of strings, empty when absent. */
export function stringList(value: unknown, file: string, field: string): readonly string[] {
  if (value === undefined || value === null) return [];
  if (Array.isArray(value) && value.every((entry) => typeof entry === 'string')) return value;
  throw quantizationConfigError(file, field, 'expected a list of strings', { actual: value });
}
