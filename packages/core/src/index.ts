// Errors
export * from './errors.js';
// Numbers and schemes
export * from './dtype.js';
export * from './quant/quant-scheme.js';
export * from './arithmetic.js';
// Devices and layers, as the oracle sees them
export * from './device-info.js';
export * from './device-profiles.js';
export * from './kv-cache.js';
export * from './layer-spec.js';
// The contract
export * from './backend.js';
export * from './priority-bands.js';
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
// Seeded random numbers
export { Random } from './random.js';
// Packing weights for kernels
export * from './layout/input-rows.js';
export * from './layout/matrix-stack.js';
export * from './layout/packed-layers.js';
export * from './layout/swizzled-scales.js';
// Checkpoints
export { Checkpoint } from './checkpoint/checkpoint.js';
export * from './checkpoint/config-reader.js';
export * from './checkpoint/describe-model.js';
export { openExpertWeights } from './checkpoint/expert-weights.js';
export { checkFiniteWeights } from './checkpoint/finite-weights.js';
export { ReadBuffer } from './checkpoint/read-buffer.js';
export * from './checkpoint/kv-scales.js';
export { openLinearWeights } from './checkpoint/linear-weights.js';
export type { TensorInfo } from './checkpoint/safetensors.js';
// The oracle: which kernel serves which layer, and why
export * from './oracle/plan-types.js';
export type { Preference, PreferenceScope, PreferenceSource } from './oracle/preferences.js';
export { plan } from './oracle/plan.js';
export { canonicalJson } from './oracle/plan-hash.js';
export * from './oracle/evidence.js';
export * from './oracle/explain.js';
export * from './oracle/plan-diff.js';
export * from './oracle/plan-file.js';
export { formatBytes } from './oracle/memory.js';
export { describeDevice } from './oracle/dimensions.js';
export { prepareExperts, prepareLinear, type PrepareContext, type PrepareHost } from './oracle/prepare.js';
export type { PreparedBinding, PreparedLayer } from './oracle/prepared-layer.js';
// Kernels checked before they serve
export { KernelVerification, quarantineOf } from './verification/kernel-verification.js';
export type { KernelVerificationOptions } from './verification/kernel-verification.js';
export type { ExpertsCall, KernelRunner, LinearCall } from './verification/kernel-runner.js';
export type { KernelFigures } from './verification/layer-sample.js';
export { openVerifiedKernels, verifiedInMemory } from './verification/verified-kernels.js';
export type { VerifiedKernel, VerifiedKernels } from './verification/verified-kernels.js';
// Packed weights on disk
export { openPackedCache } from './packed-cache/packed-cache.js';
export type { PackedCache, PackedCacheCounts, PackedCacheOptions, PackedEntry } from './packed-cache/packed-cache.js';
export * from './make-directory.js';
// Plugins: registration, injection, hooks
export * from './plugin-host.js';
export type { Hooks } from './hooks.js';
export * from './tokens.js';
export * from './native-addon.js';
export {
  eraseLinearBackend,
  eraseMoeBackend,
  type ErasedBackend,
  type ErasedLinearBackend,
  type ErasedMoeBackend,
} from './oracle/erased-backend.js';
