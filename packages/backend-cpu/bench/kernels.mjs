// Speed of the kernels alone, on the addon's own pool:
//
//   node bench/kernels.mjs [--threads 2] [--isa avx512] [--only nvfp4] [--seconds 0.5] [--tokens 1,8] [--rows 16384] [--cpu-time]
//
// Experts: the layer shape of Qwen3-30B-A3B (hidden 2048, moe_intermediate 768, top-8) with 32 experts, chosen anew for every call, so
// that one token reads its weights from memory. Linear: 16384 x 2048 unless --rows says otherwise. GB/s counts the packed bytes of the experts that a call chose;
// Gop/s counts two operations per weight and token.
import { parseArgs } from 'node:util';
import { cpuAddon } from '../dist/src/index.js';

const { values: options } = parseArgs({
  options: {
    threads: { type: 'string', default: '2' },
    isa: { type: 'string' },
    only: { type: 'string', default: '' },
    seconds: { type: 'string', default: '0.5' },
    'cpu-time': { type: 'boolean', default: false },
    rows: { type: 'string', default: '16384' },
    tokens: { type: 'string', default: '1,8,64,512' },
  },
});
const addon = cpuAddon();
const isa = options.isa ?? addon.instructionSets().at(-1);
const numThreads = Number(options.threads);
const budgetMs = Number(options.seconds) * 1000;
const tokenCounts = options.tokens.split(',').map(Number);
const hiddenSize = 2048;
const moeIntermediateSize = 768;
const numExperts = 32;
const topK = 8;
const outFeatures = Number(options.rows);

const variants = [
  { name: 'nvfp4 wider', format: 'nvfp4', input: 'float', bits: 4 },
  { name: 'nvfp4 same', format: 'nvfp4', input: 'nvfp4', bits: 4 },
  { name: 'mxfp4', format: 'mxfp4', input: 'float', bits: 4 },
  { name: 'fp8 wider', format: 'fp8', input: 'float', bits: 8 },
  { name: 'fp8 same (static)', format: 'fp8', input: 'fp8-static', bits: 8 },
  { name: 'fp8 same (token)', format: 'fp8', input: 'fp8-token', bits: 8 },
  { name: 'fp8.block128 wider', format: 'fp8-block128', input: 'float', bits: 8 },
  { name: 'fp8.block128 same', format: 'fp8-block128', input: 'fp8-group128', bits: 8 },
  { name: 'bf16', format: 'bf16', input: 'float', bits: 16 },
  { name: 'f16', format: 'f16', input: 'float', bits: 16 },
].filter(({ name }) => name.includes(options.only));

// A small generator with a fixed seed (Marsaglia's xorshift32): runs are comparable.
let state = 0x2545f491;
function random() {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return state >>> 0;
}

function randomBytes(length, make) {
  return Uint8Array.from({ length }, make);
}

function sourceOf({ format, bits }, rows, columns) {
  const bytes = (rows * columns * bits) / 8;
  // Codes without NaN; 16-bit values near one.
  const code =
    bits === 4
      ? () => random() & 255
      : bits === 8
        ? () => random() & 0xbf
        : (_, i) => (i % 2 === 0 ? random() & 255 : 0x3c + (random() & 0x81));
  return {
    codes: randomBytes(bytes, code),
    ...(format === 'nvfp4' ? { scaleCodes: randomBytes((rows * columns) / 16, () => 0x38 + (random() & 7)) } : {}),
    ...(format === 'mxfp4' ? { scaleCodes: randomBytes((rows * columns) / 32, () => 122 + (random() & 3)) } : {}),
    ...(format === 'fp8-block128' ? { blockScales: new Float32Array((rows * columns) / 16384).fill(0.01) } : {}),
    factor: format === 'fp8-block128' ? 1 : 0.01,
  };
}

function median(list) {
  return list.sort((a, b) => a - b)[list.length >> 1];
}

/** Milliseconds: of the clock, or, where other work shares the machine, of this process's processors divided by its threads. */
function now() {
  if (!options['cpu-time']) return performance.now();
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000 / numThreads;
}

/** Median milliseconds per byte of `run(prepare())`, after one call that is not counted. */
function measure(prepare, run) {
  run(prepare());
  const times = [];
  for (const end = performance.now() + budgetMs; times.length < 3 || performance.now() < end;) {
    const call = prepare();
    const begin = now();
    run(call);
    times.push((now() - begin) / call.bytes);
  }
  return median(times);
}

function report(name, numTokens, msPerByte, msPerCall, operations) {
  const gigabytes = 1e-6 / msPerByte;
  const line = [name.padEnd(22), String(numTokens).padStart(5), msPerCall.toFixed(3).padStart(10), gigabytes.toFixed(1).padStart(8)];
  console.log(`${line.join(' ')} ${(operations / msPerCall / 1e6).toFixed(0).padStart(8)}`);
}

async function benchExperts(variant) {
  const { format, input } = variant;
  const weights = addon.createExpertWeights({ format, hiddenSize, moeIntermediateSize, numExperts, hasBias: false });
  const up = sourceOf(variant, moeIntermediateSize, hiddenSize);
  const down = sourceOf(variant, hiddenSize, moeIntermediateSize);
  for (let matrix = 0; matrix < 3 * numExperts; matrix++) await addon.packMatrix(weights, matrix, matrix % 3 === 2 ? down : up);
  const kernel = addon.createExpertsKernel(weights, {
    name: variant.name,
    isa,
    input,
    inputScales: new Float32Array(3 * numExperts).fill(0.01),
    topK,
    activation: { type: 'silu' },
  });
  const expertBytes = addon.weightsBytes(weights) / numExperts;
  for (const numTokens of tokenCounts) {
    const hiddenStates = Float32Array.from({ length: numTokens * hiddenSize }, () => random() / 2 ** 31 - 1);
    const output = new Float32Array(numTokens * hiddenSize);
    const topkWeights = new Float32Array(numTokens * topK).fill(1 / topK);
    const prepare = () => {
      const topkSlots = new Int32Array(numTokens * topK);
      const used = new Set();
      for (let token = 0; token < numTokens; token++) {
        const chosen = new Set();
        while (chosen.size < topK) chosen.add(random() % numExperts);
        topkSlots.set([...chosen], token * topK);
        for (const expert of chosen) used.add(expert);
      }
      return { topkSlots, bytes: used.size * expertBytes };
    };
    const distinct = prepare().bytes;
    const perByte = measure(prepare, ({ topkSlots }) => {
      addon.runExperts(
        kernel,
        { numTokens, topK, hiddenSize, hiddenStates, topkSlots, topkWeights, output, accumulate: false },
        numThreads,
      );
    });
    report(`experts ${variant.name}`, numTokens, perByte, perByte * distinct, 2 * numTokens * topK * 3 * hiddenSize * moeIntermediateSize);
  }
  addon.disposeKernel(kernel);
  addon.disposeWeights(weights);
}

async function benchLinear(variant) {
  const { format, input } = variant;
  const weights = addon.createLinearWeights({ format, inFeatures: hiddenSize, outFeatures: Int32Array.of(outFeatures), hasBias: false });
  await addon.packMatrix(weights, 0, sourceOf(variant, outFeatures, hiddenSize));
  const kernel = addon.createLinearKernel(weights, { name: variant.name, isa, input, inputScales: Float32Array.of(0.01) });
  const bytes = addon.weightsBytes(weights);
  for (const numTokens of tokenCounts) {
    const rows = Float32Array.from({ length: numTokens * hiddenSize }, () => random() / 2 ** 31 - 1);
    const output = new Float32Array(numTokens * outFeatures);
    const args = { numTokens, input: rows, inFeatures: hiddenSize, outFeatures, output, accumulate: false };
    const perByte = measure(
      () => ({ bytes }),
      () => {
        addon.runLinear(kernel, args, numThreads);
      },
    );
    report(`linear ${variant.name}`, numTokens, perByte, perByte * bytes, 2 * numTokens * outFeatures * hiddenSize);
  }
  addon.disposeKernel(kernel);
  addon.disposeWeights(weights);
}

console.log(`${isa}, ${numThreads} threads`);
console.log(`${'kernel'.padEnd(22)} ${'tokens'.padStart(5)} ${'ms'.padStart(9)} ${'GB/s'.padStart(8)} ${'Gop/s'.padStart(8)}`);
for (const variant of variants) {
  await benchExperts(variant);
  await benchLinear(variant);
}
