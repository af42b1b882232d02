import type { ExpertsArgs, LinearArgs } from '@moe-server/core';
import { MoeError, messageOf } from '@moe-server/core';
import type { ExpertsCommand, LinearCommand } from '../commands.js';
import type { StepLimits } from '../step-inputs.js';
import type { Operator } from './operator.js';
import { floatsOf, intsOf, maxRowsOf, numRowsOf, numTokensOf } from './operator.js';

/**
 *
 */
export function linear(command: LinearCommand, limits: StepLimits): Operator {
  const { rows, inFeatures, outFeatures, accumulate, kernel, name } = command;
  const { entry } = kernel;
  if (entry.type !== 'js-linear') throw cannotRun(name, entry.type, 'js-linear');
  const maxRows = maxRowsOf(limits, rows);
  const input = floatsOf(command.input, maxRows * inFeatures, `The input of ${name}`);
  const output = floatsOf(command.output, maxRows * outFeatures, `The output of ${name}`);
  return (inputs) => {
    const numTokens = numRowsOf(inputs, rows);
    const args: LinearArgs = { numTokens, input, output, accumulate };
    if (numTokens > 0)
      guarded(name, () => {
        entry.run(args);
      });
  };
}

/**
 *
 */
export function experts(command: ExpertsCommand, limits: StepLimits): Operator {
  const { hiddenSize, topK, accumulate, kernel, name } = command;
  const { entry } = kernel;
  if (entry.type !== 'js-experts') throw cannotRun(name, entry.type, 'js-experts');
  const { maxNumTokens } = limits;
  const hiddenStates = floatsOf(command.input, maxNumTokens * hiddenSize, `The input of ${name}`);
  const topkSlots = intsOf(command.topkSlots, maxNumTokens * topK, `topkSlots of ${name}`);
  const topkWeights = floatsOf(command.topkWeights, maxNumTokens * topK, `topkWeights of ${name}`);
  const output = floatsOf(command.output, maxNumTokens * hiddenSize, `The output of ${name}`);
  return (inputs) => {
    const numTokens = numTokensOf(inputs);
    const args: ExpertsArgs = { numTokens, topK, hiddenStates, topkSlots, topkWeights, output, accumulate };
    if (numTokens > 0)
      guarded(name, () => {
        entry.run(args);
      });
  };
}

function guarded(name: string, run: () => void): void {
  try {
    run();
  } catch (cause) {
    throw new MoeError('MOE_DEVICE_KERNEL', `The kernel of ${name} failed: ${messageOf(cause)}`, { command: name }, { cause });
  }
}

function cannotRun(name: string, actual: string, expected: string): MoeError {
  return new MoeError(
    'MOE_DEVICE_KERNEL',
    `The TypeScript device runs kernels of type ${expected}, but ${name} was bound to one of type ${actual}. Choose a backend that has plain functions, or the CPU device.`,
    { command: name, expected, actual },
  );
}
