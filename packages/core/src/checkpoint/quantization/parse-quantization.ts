import { isRecord } from '../json-scan.js';
import { parseCompressedTensors } from './compressed-tensors.js';
import { gptOssMxfp4 } from './gpt-oss-mxfp4.js';
import { parseHfFp8 } from './hf-fp8.js';
import type { ModeloptSource } from './modelopt.js';
import { isModelopt, parseModelopt } from './modelopt.js';
import type { QuantizationConfig } from './quantization-config.js';
import { quantizationConfigError, unquantized, unsupportedQuantization } from './quantization-config.js';

const configFile = 'config.json';
const hfQuantFile = 'hf_quant_config.json';

/**
 * Finds out who quantized a checkpoint and how. `quantization_config` of config.json decides, hf_quant_config.json of older modelopt exports
 * stands in for it or fills what it leaves out.
 *
 * @param hfQuantConfig - content of hf_quant_config.json, undefined when absent.
 * @throws {MoeError} MOE_CHECKPOINT_CONFIG naming file and field; MOE_UNSUPPORTED_QUANTIZATION listing what is supported.
 */
export function parseQuantization(config: Readonly<Record<string, unknown>>, hfQuantConfig: unknown): QuantizationConfig {
  const section = findSection(config);
  const modelopt: ModeloptSource[] = [];
  if (section !== undefined && isModelopt(section)) modelopt.push({ section, file: configFile });
  if (hfQuantConfig !== undefined) {
    if (!isRecord(hfQuantConfig))
      throw quantizationConfigError(hfQuantFile, 'quantization', 'expected a JSON object', { actual: hfQuantConfig });
    if (section === undefined || modelopt.length > 0) modelopt.push({ section: hfQuantConfig, file: hfQuantFile });
  }
  if (modelopt.length > 0) return parseModelopt(modelopt);
  if (section === undefined) return unquantized;
  const method = section.quant_method;
  switch (method) {
    case 'compressed-tensors':
      return parseCompressedTensors(section, configFile);
    case 'fp8':
      return parseHfFp8(section, configFile);
    case 'mxfp4':
      return gptOssMxfp4;
    default:
      if (typeof method !== 'string') {
        throw quantizationConfigError(configFile, 'quantization_config.quant_method', 'expected the name of a quantization method', {
          actual: method,
        });
      }
      throw unsupportedQuantization(`The quantization method ${method.toUpperCase()} (${configFile}, quantization_config.quant_method)`, {
        file: configFile,
        quantization: method,
      });
  }
}

/** Multimodal models have it at the top or inside `text_config`; old compressed-tensors files call it `compression_config`. */
function findSection(config: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> | undefined {
  const text = isRecord(config.text_config) ? config.text_config : {};
  const section = config.quantization_config ?? text.quantization_config ?? config.compression_config;
  if (section === undefined || section === null) return undefined;
  if (!isRecord(section)) throw quantizationConfigError(configFile, 'quantization_config', 'expected a JSON object', { actual: section });
  return section;
}
