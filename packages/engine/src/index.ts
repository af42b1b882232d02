export type * from './request.js';
export type * from './batch.js';
export * from './device/commands.js';
export * from './device/step-inputs.js';
export type * from './device/device.js';
