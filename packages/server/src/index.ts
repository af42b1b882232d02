// An engine in this process, for benchmarks and examples
export { createDevice, createEngine, describeThisDevice, loadPlugins, makePlan } from './compose.js';
export type { ComposedEngine, EngineObserver, EngineSettings, LoadedPlugins } from './compose.js';
// An engine in a process of its own
export { ForkedEngine } from './forked-engine.js';
export type { EngineProcessObserver, ForkedEngineOptions } from './forked-engine.js';
export type { EngineClient } from './engine-client.js';
export type { ModelInfo } from './engine-protocol.js';
// The HTTP side, over any engine
export { createApp } from './app.js';
export { listen } from './http-server.js';
export type { HttpServerOptions, ListeningServer } from './http-server.js';
export type { HttpSettings, ServedModel, ServerContext } from './routes/endpoint.js';
// The command
export { run } from './cli.js';
export { exitStatus } from './exit-status.js';
