import type { SchemeKey } from '../../quant/quant-scheme.js';
import { parseKvCacheScheme, parseQuantizedLayers } from './modelopt.js';
import { ModulePatterns } from './module-patterns.js';
import type { QuantizationConfig } from './quantization-config.js';
import { quantizationConfigError, stringList, unsupportedQuantization } from './quantization-config.js';

/**
 * `quant_method: "fp8"`: 128x128 blocks (DeepSeek-V3, Qwen3-FP8), or one scale per tensor where there is no weight_block_size. The same object may
 * list experts of another scheme under `quantized_layers` (DeepSeek-V4 with NVFP4 experts); those win, and `ignore` then speaks of them alone.
 *
 * @throws {MoeError} MOE_CHECKPOINT_CONFIG, MOE_UNSUPPORTED_QUANTIZATION
 */
export function parseHfFp8(section: Readonly<Record<string, unknown>>, file: string): QuantizationConfig {
  const { fmt, activation_scheme: activations, weight_block_size: blockSize } = section;
  if (fmt !== undefined && fmt !== 'e4m3')
    throw unsupportedQuantization(`The FP8 format ${JSON.stringify(fmt)} in ${file}`, { file, quantization: fmt });
  if (activations !== undefined && activations !== 'dynamic' && activations !== 'static') {
    throw quantizationConfigError(file, 'quantization_config.activation_scheme', 'expected "dynamic" or "static"', { actual: activations });
  }
  const field = section.modules_to_not_convert === undefined ? 'ignored_layers' : 'modules_to_not_convert';
  const excluded = new ModulePatterns(stringList(section[field], file, `quantization_config.${field}`));
  const listed = section.quantized_layers === undefined ? undefined : parseQuantizedLayers(section.quantized_layers, file);
  const scheme = schemeOfBlocks(blockSize, activations === 'static', file);
  return {
    summary: scheme === 'fp8.block128' ? 'fp8 in 128x128 blocks' : 'fp8 per tensor',
    kvCacheScheme: parseKvCacheScheme(section.kv_cache_scheme, file, 'quantization_config.kv_cache_scheme'),
    schemeOf: (module) => listed?.(module) ?? (excluded.matches(module) ? undefined : scheme),
    // The output head is never converted, and DeepSeek's files do not say so.
    mayBePlain: (module) => module === 'lm_head' || module.endsWith('.shared_head.head') || excluded.isPartOf(module),
  };
}

function schemeOfBlocks(blockSize: unknown, isStatic: boolean, file: string): SchemeKey {
  if (blockSize === undefined || blockSize === null) return isStatic ? 'fp8.tensor.static' : 'fp8.tensor.dynamic';
  if (JSON.stringify(blockSize) !== '[128,128]') {
    throw unsupportedQuantization(`FP8 in blocks of ${JSON.stringify(blockSize)} (${file}, quantization_config.weight_block_size)`, {
      file,
      quantization: blockSize,
    });
  }
  if (isStatic)
    throw unsupportedQuantization(`FP8 in blocks with static input scales (${file}, quantization_config.activation_scheme)`, { file });
  return 'fp8.block128';
}
