// Requests, events and the engine that serves them
export type * from './request.js';
export type * from './batch.js';
export * from './engine.js';
export * from './engine-config.js';
export * from './sampling-params.js';
export type * from './metrics.js';
// Devices
export * from './device/commands.js';
export * from './device/step-inputs.js';
export type * from './device/device.js';
