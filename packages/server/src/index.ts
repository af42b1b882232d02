// The HTTP side, over any engine
export { createApp } from './app.js';
export type { EngineClient } from './engine-client.js';
export type { ModelInfo } from './engine-protocol.js';
