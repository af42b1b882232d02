import type { ModelInfo } from '../src/engine/engine-protocol.js';

/** A model of 256 tokens, as an engine process would describe it. */
export const byteModel: ModelInfo = {
  architecture: 'ByteForCausalLM',
  quantization: 'bf16',
  device: 'test',
  vocabSize: 256,
  maxModelLen: 200,
  maxNumSeqs: 4,
  maxNumBatchedTokens: 64,
  weightBytes: 0,
  generationDefaults: { eosTokenIds: [0] },
  kvCache: { dtype: 'bf16', blockSize: 16, numBlocks: 64, bytes: 1024, isPrefixCachingEnabled: true },
  plan: {
    version: 1,
    device: { type: 'cpu', name: 'test', architecture: 'x64', features: [], numThreads: 1, memoryBytes: undefined },
    assumesBuilt: false,
    maxNumTokens: 64,
    layers: [],
    unserved: [],
    bytes: { residentBytes: 0, preparePeakBytes: 0, workspaceBytes: 0, requiredBytes: 0, availableBytes: null, fits: true },
    notices: [],
    hash: '0',
  },
};
