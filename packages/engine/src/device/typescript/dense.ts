import type { Activation } from '@moe-server/core';
import { MoeError } from '@moe-server/core';
import type {
  EmbedCommand,
  GatedActivationCommand,
  GatherRowsCommand,
  HeadRmsNormCommand,
  RmsNormCommand,
  RopeCommand,
} from '../commands.js';
import type { StepLimits } from '../step-inputs.js';
import type { Operator } from './operator.js';
import { floatsOf, halvesOf, maxRowsOf, numRowsOf, numTokensOf } from './operator.js';

/**
 *
 */
export function embed(command: EmbedCommand, limits: StepLimits): Operator {
  const { width, vocabSize } = command;
  const table = halvesOf(command.table, vocabSize * width, 'The table of embed');
  const output = floatsOf(command.output, limits.maxNumTokens * width, 'The output of embed');
  // bfloat16 is the upper half of float32, so decoding is a shift into the same memory.
  const outputBits = new Uint32Array(output.buffer, output.byteOffset, output.length);
  return (inputs) => {
    const numTokens = numTokensOf(inputs);
    for (let t = 0; t < numTokens; t++) {
      const tokenId = inputs.tokenIds[t] ?? -1;
      if (tokenId < 0 || tokenId >= vocabSize) {
        throw new MoeError('MOE_INTERNAL', `Token id ${String(tokenId)} is outside the vocabulary of ${String(vocabSize)}.`, {
          tokenId,
          vocabSize,
        });
      }
      for (let i = 0; i < width; i++) outputBits[t * width + i] = table[tokenId * width + i]! << 16;
    }
  };
}

/**
 *
 */
export function rmsNorm(command: RmsNormCommand, limits: StepLimits): Operator {
  const { width, eps, rows } = command;
  const maxRows = maxRowsOf(limits, rows);
  const input = floatsOf(command.input, maxRows * width, 'The input of rmsNorm');
  const output = floatsOf(command.output, maxRows * width, 'The output of rmsNorm');
  const weight = floatsOf(command.weight, width, 'The weight of rmsNorm');
  return (inputs) => {
    const numRows = numRowsOf(inputs, rows);
    for (let row = 0; row < numRows; row++) normalize(input, output, row * width, weight, width, eps);
  };
}

/**
 *
 */
export function headRmsNorm(command: HeadRmsNormCommand, limits: StepLimits): Operator {
  const { rowWidth, columnOffset, numHeads, headDim, eps } = command;
  const tensor = floatsOf(command.tensor, limits.maxNumTokens * rowWidth, 'The tensor of headRmsNorm');
  const weight = floatsOf(command.weight, headDim, 'The weight of headRmsNorm');
  return (inputs) => {
    const numTokens = numTokensOf(inputs);
    for (let t = 0; t < numTokens; t++) {
      for (let head = 0; head < numHeads; head++) {
        normalize(tensor, tensor, t * rowWidth + columnOffset + head * headDim, weight, headDim, eps);
      }
    }
  };
}

function normalize(input: Float32Array, output: Float32Array, start: number, weight: Float32Array, width: number, eps: number): void {
  let squares = 0;
  for (let i = 0; i < width; i++) squares += input[start + i]! ** 2;
  const factor = 1 / Math.sqrt(squares / width + eps);
  for (let i = 0; i < width; i++) output[start + i] = input[start + i]! * factor * weight[i]!;
}

/**
 *
 */
export function rope(command: RopeCommand, limits: StepLimits): Operator {
  const { rowWidth, columnOffset, numHeads, headDim, rotaryDim, interleaved, maxPositions } = command;
  const tensor = floatsOf(command.tensor, limits.maxNumTokens * rowWidth, 'The tensor of rope');
  const table = floatsOf(command.table, maxPositions * rotaryDim, 'The table of rope');
  const numPairs = rotaryDim / 2;
  return (inputs) => {
    const numTokens = numTokensOf(inputs);
    for (let t = 0; t < numTokens; t++) {
      const position = inputs.positions[t] ?? 0;
      if (position >= maxPositions) {
        throw new MoeError('MOE_INTERNAL', `Position ${String(position)} is outside the rotary table of ${String(maxPositions)}.`, {
          position,
        });
      }
      for (let head = 0; head < numHeads; head++) {
        const start = t * rowWidth + columnOffset + head * headDim;
        for (let i = 0; i < numPairs; i++) {
          const first = start + (interleaved ? 2 * i : i);
          const second = interleaved ? first + 1 : first + numPairs;
          const cosine = table[position * rotaryDim + i]!;
          const sine = table[position * rotaryDim + numPairs + i]!;
          const a = tensor[first]!;
          const b = tensor[second]!;
          tensor[first] = a * cosine - b * sine;
          tensor[second] = b * cosine + a * sine;
        }
      }
    }
  };
}

/**
 *
 */
export function gatedActivation(command: GatedActivationCommand, limits: StepLimits): Operator {
  const { rows, width } = command;
  const maxRows = maxRowsOf(limits, rows);
  const input = floatsOf(command.input, maxRows * 2 * width, 'The input of gatedActivation');
  const output = floatsOf(command.output, maxRows * width, 'The output of gatedActivation');
  const activate = activationOf(command.activation);
  return (inputs) => {
    const numRows = numRowsOf(inputs, rows);
    for (let row = 0; row < numRows; row++) {
      for (let i = 0; i < width; i++) {
        const gate = input[row * 2 * width + i]!;
        const up = input[row * 2 * width + width + i]!;
        output[row * width + i] = activate(gate, up);
      }
    }
  };
}

function activationOf(activation: Activation): (gate: number, up: number) => number {
  if (activation.type === 'silu') return (gate, up) => (gate / (1 + Math.exp(-gate))) * up;
  if (activation.type === 'swiglu') {
    const { alpha, limit } = activation;
    return (gate, up) => {
      const clampedGate = Math.min(gate, limit);
      const clampedUp = Math.min(Math.max(up, -limit), limit);
      return ((clampedUp + 1) * clampedGate) / (1 + Math.exp(-alpha * clampedGate));
    };
  }
  throw new MoeError('MOE_DEVICE_KERNEL', `The activation "${activation.name}" is not known to the TypeScript device.`, {
    activation: activation.name,
  });
}

/**
 *
 */
export function gatherRows(command: GatherRowsCommand, limits: StepLimits): Operator {
  const { width } = command;
  const input = floatsOf(command.input, limits.maxNumTokens * width, 'The input of gatherRows');
  const output = floatsOf(command.output, limits.maxLogitRows * width, 'The output of gatherRows');
  return (inputs) => {
    const numRows = numRowsOf(inputs, 'logitRows');
    for (let row = 0; row < numRows; row++) {
      const start = (inputs.logitRows[row] ?? 0) * width;
      output.set(input.subarray(start, start + width), row * width);
    }
  };
}
