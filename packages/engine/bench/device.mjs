// What the CPU device costs by itself: a step without commands, attention by context, sampling by vocabulary. Build first.
//   node packages/engine/bench/device.mjs [--threads N] [--dtype bf16|f8e4m3] [--heads 32] [--kv-heads 4] [--head-dim 128] [--numerics float32]
import { parseArgs } from 'node:util';
import { createCpuDevice, layoutStep, measureBandwidth, StepInputs } from '@moe-server/engine';

const { values: options } = parseArgs({
  options: {
    threads: { type: 'string', default: '2' },
    dtype: { type: 'string', default: 'bf16' },
    heads: { type: 'string', default: '32' },
    'kv-heads': { type: 'string', default: '4' },
    'head-dim': { type: 'string', default: '128' },
    layers: { type: 'string', default: '12' },
    numerics: { type: 'string', default: 'auto' },
  },
});
const numThreads = Number(options.threads);
const numHeads = Number(options.heads);
const numKvHeads = Number(options['kv-heads']);
const headDim = Number(options['head-dim']);
const numLayers = Number(options.layers);
const dtype = options.dtype;
const blockSize = 16;
const maxContext = 4096;
const maxNumSeqs = 8;
const maxNumTokens = 512;

const device = createCpuDevice({ numThreads, numerics: options.numerics });
const limits = { maxNumTokens, maxNumSeqs, maxLogitRows: 1, maxBlocksPerSeq: maxContext / blockSize, maxAdjustments: 1 };
const layout = layoutStep(limits);
const inputs = new StepInputs(layout, device.allocate(layout.byteLength, 'step inputs').buffer);

async function median(program, repeats) {
  const times = [];
  for (let i = 0; i < repeats; i++) {
    const start = process.hrtime.bigint();
    await device.submit(program, inputs);
    times.push(Number(process.hrtime.bigint() - start) / 1e3);
  }
  times.sort((a, b) => a - b);
  return times[Math.floor(repeats / 2)];
}

/** `numSeqs` sequences, each with its last `numTokens` positions in the batch; none shares a block, or the cache would be read from nearer. */
function fill(numSeqs, numTokens, context) {
  inputs.header.set([numSeqs * numTokens, numSeqs, 0]);
  for (let s = 0; s <= numSeqs; s++) inputs.queryStarts[s] = s * numTokens;
  for (let s = 0; s < numSeqs; s++) {
    inputs.contextLengths[s] = context;
    for (let i = 0; i < numTokens; i++) inputs.positions[s * numTokens + i] = context - numTokens + i;
    for (let b = 0; b < limits.maxBlocksPerSeq; b++)
      inputs.blockTables[s * limits.maxBlocksPerSeq + b] = ((s * (numBlocks / maxNumSeqs) + b) * 5) % numBlocks;
  }
}

const numBlocks = (maxNumSeqs * 2048) / blockSize;
const elementBytes = dtype === 'bf16' ? 2 : 1;
const rowBytes = numKvHeads * headDim * elementBytes;
const rowWidth = (numHeads + 2 * numKvHeads) * headDim;
const queries = device.allocate(4 * maxNumTokens * rowWidth, 'queries');
new Float32Array(queries.buffer).forEach((_, i, all) => (all[i] = ((i * 2654435761) % 1000) / 500 - 1));
const output = device.allocate(4 * maxNumTokens * numHeads * headDim, 'output');
const commands = Array.from({ length: numLayers }, () => {
  const keys = device.allocate(numBlocks * blockSize * rowBytes, 'keys');
  const values = device.allocate(numBlocks * blockSize * rowBytes, 'values');
  for (const { buffer } of [keys, values]) new Uint16Array(buffer).fill(dtype === 'bf16' ? 0x3c00 : 0x3130);
  const cache = { dtype, keys, values, numBlocks, blockSize, numKvHeads, headDim, keyScale: 1, valueScale: 1 };
  return {
    op: 'attention',
    queries,
    rowWidth,
    queryOffset: 0,
    numHeads,
    scale: headDim ** -0.5,
    cache,
    slidingWindow: 0,
    sinks: undefined,
    output,
  };
});

console.log(
  `${device.info.name}, ${String(numThreads)} threads, ${String(numLayers)} layers of ${String(numHeads)}/${String(numKvHeads)} heads of ${String(headDim)}, ${dtype} cache`,
);
const bandwidth = await measureBandwidth({ numThreads, totalBytes: 2 ** 29, pieceBytes: 1.5 * 2 ** 20 });
console.log(`random 1.5 MiB pieces: ${bandwidth.toFixed(1)} GB/s`);
const empty = device.compile([], layout);
fill(1, 1, 1);
await median(empty, 1000);
console.log(`empty step: ${(await median(empty, 2001)).toFixed(1)} µs from submit to resolve`);

const attention = device.compile(commands, layout);
for (const [numSeqs, context] of [
  [1, 128],
  [1, 2048],
  [1, 4096],
  [8, 2048],
]) {
  fill(numSeqs, 1, context);
  await median(attention, 5);
  const us = await median(attention, 41);
  const bytes = 2 * rowBytes * context * numSeqs * numLayers;
  console.log(
    `decode, ${String(numSeqs)} x context ${String(context)}: ${us.toFixed(0)} µs, ${(bytes / us / 1e3).toFixed(1)} GB/s of keys and values`,
  );
}
for (const context of [512, 2048]) {
  fill(1, 512, context);
  await median(attention, 1);
  const us = await median(attention, 5);
  const products = (512 * (context - 512) + (512 * 513) / 2) * numHeads * headDim * 2 * numLayers;
  console.log(`prefill, 512 tokens at context ${String(context)}: ${us.toFixed(0)} µs, ${((2 * products) / us / 1e3).toFixed(0)} GFLOP/s`);
}

/** Native time of one step, in microseconds: median of `repeats`. */
async function nativeMedian(program, repeats) {
  const times = [];
  for (let i = 0; i < repeats; i++) {
    await device.submit(program, inputs);
    const { beganMs, endedMs } = device.lastStep;
    times.push((endedMs - beganMs) * 1e3);
  }
  times.sort((a, b) => a - b);
  return times[Math.floor(repeats / 2)];
}

/** Normal, by Box and Muller, from a linear congruential generator (Numerical Recipes). */
function normal(count, deviation) {
  let state = 1;
  const uniform = () => ((state = (Math.imul(state, 1664525) + 1013904223) >>> 0) + 0.5) / 2 ** 32;
  return Float32Array.from({ length: count }, () => deviation * Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

// Logits of deviation 3 are as peaked as a trained model's; of deviation 1 they are nearly flat, and top-p keeps half of the vocabulary.
const methods = {
  greedy: { temperature: 0 },
  'temperature 1': {},
  'top-k 50': { topK: 50 },
  'top-p 0.9': { topP: 0.9 },
  'top-k 50, top-p 0.9': { topK: 50, topP: 0.9 },
  'greedy, 5 logprobs': { temperature: 0, numTopLogprobs: 5 },
};
for (const vocabSize of [32_768, 151_936]) {
  for (const deviation of [3, 1]) {
    const logits = device.allocate(4 * vocabSize, 'logits');
    new Float32Array(logits.buffer).set(normal(vocabSize, deviation));
    const [tokenIds, logprobs, ranks] = ['token ids', 'logprobs', 'ranks'].map((label) => device.allocate(4, label));
    const [topIds, topLogprobs] = ['top ids', 'top logprobs'].map((label) => device.allocate(80, label));
    const sample = { op: 'sample', logits, vocabSize, tokenIds, logprobs, ranks, maxTopLogprobs: 20, topIds, topLogprobs };
    const program = device.compile([sample], layout);
    fill(1, 1, 1);
    inputs.header[2] = 1;
    inputs.targets[0] = -1;
    inputs.repetitionPenalties[0] = 1;
    const results = [];
    for (const [method, { temperature = 1, topK = 0, topP = 1, numTopLogprobs = 0 }] of Object.entries(methods)) {
      Object.entries({ temperatures: temperature, topKs: topK, topPs: topP, numTopLogprobs }).forEach(([name, value]) => {
        inputs[name][0] = value;
      });
      results.push(`${method} ${(await nativeMedian(program, 201)).toFixed(0)}`);
    }
    console.log(`sampling of ${String(vocabSize)} logits of deviation ${String(deviation)}: ${results.join(', ')} µs`);
    program.dispose();
  }
}
device.dispose();
