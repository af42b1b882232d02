import type { KernelRunner } from '@moe-server/core';
import type { BufferRef, Command } from './device/commands.js';
import type { Device } from './device/device.js';
import { StepInputs, layoutStep } from './device/step-inputs.js';

/** Runs kernels by themselves on a device, each call a program of one command. For checks and measurements, before or between steps. */
export function createKernelRunner(device: Device): KernelRunner {
  const place = (label: string, values: Float32Array | Int32Array): BufferRef => {
    const ref = device.allocate(values.byteLength, label);
    new Uint8Array(ref.buffer, ref.byteOffset, values.byteLength).set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    return ref;
  };
  const run = async (command: Command & { readonly output: BufferRef }, numTokens: number, width: number): Promise<Float32Array> => {
    const layout = layoutStep({ maxNumTokens: numTokens, maxNumSeqs: 1, maxLogitRows: 1, maxBlocksPerSeq: 1, maxAdjustments: 1 });
    const inputs = new StepInputs(layout, device.allocate(layout.byteLength, 'step inputs').buffer);
    inputs.header.set([numTokens, 1, 0]);
    inputs.queryStarts[1] = numTokens;
    inputs.contextLengths[0] = 1;
    const program = device.compile([command], layout);
    try {
      await device.submit(program, inputs);
    } finally {
      program.dispose();
    }
    const { buffer, byteOffset } = command.output;
    return new Float32Array(buffer, byteOffset, numTokens * width);
  };
  const common = { name: 'the kernel', accumulate: false } as const;
  return {
    runExperts: (kernel, { hiddenSize }, { numTokens, topK, hiddenStates, topkSlots, topkWeights }) => {
      const command = {
        op: 'experts',
        ...common,
        kernel,
        hiddenSize,
        topK,
        input: place('hidden states', hiddenStates),
        topkSlots: place('topk slots', topkSlots),
        topkWeights: place('topk weights', topkWeights),
        output: device.allocate(4 * numTokens * hiddenSize, 'the output of a kernel'),
      } as const;
      return run(command, numTokens, hiddenSize);
    },
    runLinear: (kernel, { inFeatures, outFeatures }, { numTokens, input }) => {
      const command = {
        op: 'linear',
        rows: 'tokens',
        ...common,
        kernel,
        inFeatures,
        outFeatures,
        input: place('the input of a linear', input),
        output: device.allocate(4 * numTokens * outFeatures, 'the output of a kernel'),
      } as const;
      return run(command, numTokens, outFeatures);
    },
  };
}
