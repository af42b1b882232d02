// Requests, events and the engine that serves them
export type * from './request.js';
export type * from './batch.js';
export * from './engine.js';
export * from './engine-config.js';
export * from './sampling-params.js';
export type * from './metrics.js';
// Text; loads no native code of ours
export * from './text/tokenizer.js';
export { ChatTemplate } from './text/chat-template.js';
export type { ChatMessage, RenderBudget, RenderOptions } from './text/chat-template.js';
export * from './text/detokenizer.js';
export * from './text/stop-strings.js';
// Devices
export * from './device/commands.js';
export * from './device/step-inputs.js';
export type * from './device/device.js';
export { createTypescriptDevice } from './device/typescript-device.js';
export * from './device/cpu-device.js';
export * from './device/cpu-rates.js';
export { createKernelRunner } from './kernel-runner.js';
// Models
export * from './model-config.js';
export type { Model } from './models/model.js';
export { loadModel } from './model-loader.js';
export type { LoadModelOptions, LoadProgress, LoadedModel } from './model-loader.js';
export * from './kv-cache.js';
export { ModelRunner } from './model-runner.js';
export type { ModelRunnerOptions, StepLogits } from './model-runner.js';
