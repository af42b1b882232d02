// Errors
export * from './errors.js';
// Numbers and schemes
export * from './dtype.js';
export * from './quant/quant-scheme.js';
export * from './arithmetic.js';
// Devices and layers, as the oracle sees them
export * from './device-info.js';
export * from './layer-spec.js';
// The contract
export * from './backend.js';
export * from './plugin.js';
// Reference encode and decode of every format
export * from './quant/bf16.js';
export * from './quant/decode-weights.js';
export * from './quant/e2m1.js';
export * from './quant/e4m3.js';
export * from './quant/e8m0.js';
export * from './quant/f16.js';
export * from './quant/fp8.js';
export * from './quant/input-quantization.js';
export * from './quant/mxfp4.js';
export * from './quant/nvfp4.js';
// Checkpoints
export { Checkpoint } from './checkpoint/checkpoint.js';
export * from './checkpoint/config-reader.js';
export * from './checkpoint/describe-model.js';
export { openExpertWeights } from './checkpoint/expert-weights.js';
export * from './checkpoint/kv-scales.js';
export { openLinearWeights } from './checkpoint/linear-weights.js';
export type { TensorInfo } from './checkpoint/safetensors.js';
export type { KvCacheScheme } from './checkpoint/quantization/quantization-config.js';
