import type { ExpertGroupSpec, Kernel, LayerSpec, Random } from '@moe-server/core';
import { layoutStep, StepInputs } from '@moe-server/engine';
import type { BufferRef, Command, Device, Program } from '@moe-server/engine';
import type { CallWork } from './protocol.js';

/** Calls per submit times tokens per call: small calls are repeated, so that the way to the device and back does not count as the kernel's. */
const tokensPerSubmit = 8;
/** Up to so many tokens a call waits for memory, and its weights should come from there; larger ones multiply longer than they read. */
const maxTokensBoundByMemory = 16;

/** One layer's kernel with its inputs for calls of one size, ready to be timed again and again. */
export class KernelBench {
  /** What the experts' calls have to do, on average; undefined for linears. */
  readonly work: CallWork | undefined;
  readonly #device: Device;
  readonly #program: Program;
  readonly #inputs: StepInputs;
  readonly #numCalls: number;

  /**
   * @param spec - the layer that the kernels were made for; of a sample, its experts.
   * @param kernels - one, or several of the same rule on weights of their own, to which small calls go in turn.
   * @param random - the same for every rule of a class, so that all get the same work.
   */
  constructor(device: Device, spec: LayerSpec, kernels: readonly [Kernel, ...Kernel[]], numTokens: number, random: Random) {
    this.#device = device;
    this.#numCalls = Math.max(Math.ceil(tokensPerSubmit / numTokens), numTokens > maxTokensBoundByMemory ? 1 : kernels.length);
    const layout = layoutStep({ maxNumTokens: numTokens, maxNumSeqs: 1, maxLogitRows: 1, maxBlocksPerSeq: 1, maxAdjustments: 1 });
    this.#inputs = new StepInputs(layout, device.allocate(layout.byteLength, 'step inputs').buffer);
    this.#inputs.header.set([numTokens, 1, 0]);
    this.#inputs.queryStarts[1] = numTokens;
    this.#inputs.contextLengths[0] = 1;
    const input = floats(device, numTokens * (spec.kind === 'moe' ? spec.hiddenSize : spec.inFeatures), () => random.normal());
    const outputWidth = spec.kind === 'moe' ? spec.hiddenSize : spec.outFeatures;
    const output = device.allocate(4 * numTokens * outputWidth, 'output of a kernel');
    const chosen: Int32Array[] = [];
    const commands = Array.from({ length: this.#numCalls }, (_, call): Command => {
      const kernel = kernels[call % kernels.length] ?? kernels[0];
      const common = { name: spec.name, kernel, input, output, accumulate: false } as const;
      if (spec.kind === 'linear') {
        const { inFeatures, outFeatures } = spec;
        return { op: 'linear', rows: 'tokens', ...common, inFeatures, outFeatures };
      }
      const { hiddenSize, topK } = spec;
      // Every call has its own experts: in a model, the next step's are not in the cache either.
      const topkSlots = slots(device, spec, numTokens, random);
      chosen.push(new Int32Array(topkSlots.buffer, topkSlots.byteOffset, numTokens * topK));
      const topkWeights = floats(device, numTokens * topK, () => 1 / topK);
      return { op: 'experts', ...common, hiddenSize, topK, topkSlots, topkWeights };
    });
    this.work = chosen.length === 0 ? undefined : workOf(chosen, numTokens);
    this.#program = device.compile(commands, layout);
  }

  /** Microseconds of one call. */
  readonly time = async (): Promise<number> => {
    const begin = performance.now();
    await this.#device.submit(this.#program, this.#inputs);
    return ((performance.now() - begin) * 1000) / this.#numCalls;
  };

  readonly dispose = (): void => {
    this.#program.dispose();
  };
}

/** @param calls - the slots that each call's tokens chose, −1 = none of the sample. */
function workOf(calls: readonly Int32Array[], numTokens: number): CallWork {
  const present = calls.map((slots) => slots.filter((slot) => slot >= 0));
  const sum = (values: readonly number[]): number => values.reduce((all, value) => all + value, 0);
  return {
    numTokens,
    numExperts: sum(present.map((slots) => new Set(slots).size)) / calls.length,
    numChoices: sum(present.map(({ length }) => length)) / calls.length,
  };
}

function floats(device: Device, length: number, value: () => number): BufferRef {
  const ref = device.allocate(4 * length, 'input of a kernel');
  const values = new Float32Array(ref.buffer, ref.byteOffset, length);
  for (let i = 0; i < length; i++) values[i] = value();
  return ref;
}

/**
 * Chooses experts evenly among all of the layer: those that are not of this group or its sample are −1, so that each expert gets as many tokens
 * as it would in the whole layer. The first token chooses among the experts that are there; else a call of one token could find none.
 */
function slots(device: Device, { experts, numExperts, topK }: ExpertGroupSpec, numTokens: number, random: Random): BufferRef {
  const ref = device.allocate(4 * numTokens * topK, 'expert slots');
  const chosen = new Int32Array(ref.buffer, ref.byteOffset, numTokens * topK).fill(-1);
  const ids = Int32Array.from({ length: numExperts }, (_, id) => id);
  for (let token = 0; token < numTokens; token++) {
    const pool = token === 0 ? ids.filter((id) => id < experts.length) : ids;
    for (let k = 0; k < Math.min(topK, pool.length); k++) {
      const other = k + random.int(pool.length - k);
      const id = pool[other] ?? 0;
      pool[other] = pool[k] ?? 0;
      pool[k] = id;
      chosen[token * topK + k] = id < experts.length ? id : -1;
    }
  }
  return ref;
}
