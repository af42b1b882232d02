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
