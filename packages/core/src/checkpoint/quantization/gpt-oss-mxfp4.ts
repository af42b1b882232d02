import type { QuantizationConfig } from './quantization-config.js';

/** `quant_method: "mxfp4"`: the experts of gpt-oss, and nothing else. */
export const gptOssMxfp4: QuantizationConfig = {
  summary: 'mxfp4 experts',
  kvCacheScheme: 'none',
  schemeOf: (module) => (/\.experts(\.|$)/.test(module) ? 'mxfp4.w4a16' : undefined),
  mayBePlain: () => false,
};
