// The truth
export * from '../reference/reference-layers.js';
export { inputQuantizationOf, prepareInput } from '../reference/reference-input.js';
// Suites for plugin authors
export { describeMoeBackend } from './moe-suite.js';
export type { MoeConformanceOptions } from './moe-suite.js';
export { describeLinearBackend } from './linear-suite.js';
export type { LinearConformanceOptions } from './linear-suite.js';
export type { ConformanceOptions, SchemeKit } from './suite.js';
export type { Skip, TestFunction, TestRunner } from './runner.js';
export type { NativeRunner } from './subject.js';
// The case tables and the allowed error, for benchmarks and support matrices
export * from './cases.js';
export * from '../reference/tolerance.js';
export { measureError } from '../reference/error-figures.js';
export type { ErrorFigures } from '../reference/error-figures.js';
// Seeded random layers
export * from '../random.js';
export * from './random-weights.js';
export * from './layers.js';
// Whole checkpoints with random weights
export { writeCheckpoint } from './checkpoint-writer.js';
export type { WrittenCheckpoint } from './checkpoint-writer.js';
export type { SyntheticModel, SyntheticScheme } from './synthetic-model.js';
// A backend without native code
export * from './reference-backend.js';
