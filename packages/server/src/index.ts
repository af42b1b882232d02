// An engine in this process, for benchmarks and examples
export { createDevice, createEngine, describeThisDevice, loadPlugins, makePlan } from './composition/compose.js';
export type { ComposedEngine, EngineObserver, LoadedPlugins } from './composition/compose.js';
export type { EngineSettings } from './composition/engine-settings.js';
// An engine in a process of its own
export { ForkedEngine } from './engine/forked-engine.js';
export type { EngineProcessObserver, ForkedEngineOptions } from './engine/forked-engine.js';
export type { EngineClient } from './engine/engine-client.js';
export type { ModelInfo } from './engine/engine-protocol.js';
// The HTTP side, over any engine
export { createApp } from './http/app.js';
export { listen } from './http/http-server.js';
export type { HttpServerOptions, ListeningServer } from './http/http-server.js';
export type { HttpSettings, ServedModel, ServerContext } from './routes/endpoint.js';
// The command
export { run } from './cli.js';
export { exitStatus } from './exit-status.js';
