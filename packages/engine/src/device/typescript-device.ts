import type { DeviceInfo } from '@moe-server/core';
import { MoeError } from '@moe-server/core';
import type { BufferRef, Command } from './commands.js';
import type { Device, Program, StepTimes } from './device.js';
import type { StepInputs, StepLayout, StepLimits } from './step-inputs.js';
import { attention, kvStore } from './typescript/attention.js';
import { embed, gatedActivation, gatherRows, headRmsNorm, rmsNorm, rope } from './typescript/dense.js';
import { experts, linear } from './typescript/kernels.js';
import type { Operator } from './typescript/operator.js';
import { mapSlots, route } from './typescript/routing.js';
import { sample } from './typescript/sampling.js';

/**
 * A device that interprets commands in plain TypeScript: float32 in memory, float64 in sums, one loop per operator as its definition
 * in commands.ts reads. Slow, and right by inspection: the CPU device is judged by it.
 *
 * It runs kernels of type `js-linear` and `js-experts` only.
 */
export function createTypescriptDevice(): Device {
  return new TypescriptDevice();
}

class TypescriptDevice implements Device {
  readonly info: DeviceInfo = {
    type: 'cpu',
    name: 'TypeScript reference device',
    architecture: 'other',
    features: [],
    numThreads: 1,
    memoryBytes: undefined,
  };

  #numExpertsChosen = 0;
  #lastStep: StepTimes = { beganMs: 0, endedMs: 0 };

  readonly #countExperts = (count: number): void => {
    this.#numExpertsChosen += count;
  };

  readonly allocate = (byteLength: number, label: string): BufferRef => {
    try {
      return { buffer: new ArrayBuffer(byteLength), byteOffset: 0, byteLength };
    } catch (cause) {
      throw new MoeError(
        'MOE_DEVICE_MEMORY',
        `There is no memory for ${label}: ${String(byteLength)} bytes.`,
        { label, byteLength },
        { cause },
      );
    }
  };

  readonly compile = (commands: readonly Command[], layout: StepLayout): Program => {
    return new InterpretedProgram(commands.map((command) => bind(command, layout.limits, this.#countExperts)));
  };

  readonly submit = (program: Program, inputs: StepInputs): Promise<void> => {
    if (!(program instanceof InterpretedProgram)) {
      return Promise.reject(new MoeError('MOE_INTERNAL', 'The program was compiled by another device.'));
    }
    return Promise.resolve().then(() => {
      const beganMs = monotonicMs();
      program.run(inputs);
      this.#lastStep = { beganMs, endedMs: monotonicMs() };
    });
  };

  get numExpertsChosen(): number {
    return this.#numExpertsChosen;
  }

  get lastStep(): StepTimes {
    return this.#lastStep;
  }

  readonly dispose = (): void => {
    // Everything it owns is garbage-collected memory.
  };
}

function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

class InterpretedProgram implements Program {
  readonly workspaceBytes = 0;
  readonly #operators: readonly Operator[];

  constructor(operators: readonly Operator[]) {
    this.#operators = operators;
  }

  get numCommands(): number {
    return this.#operators.length;
  }

  run(inputs: StepInputs): void {
    for (const operator of this.#operators) operator(inputs);
  }

  readonly dispose = (): void => {
    // As the device.
  };
}

function bind(command: Command, limits: StepLimits, countExperts: (count: number) => void): Operator {
  switch (command.op) {
    case 'embed':
      return embed(command, limits);
    case 'rmsNorm':
      return rmsNorm(command, limits);
    case 'linear':
      return linear(command, limits);
    case 'headRmsNorm':
      return headRmsNorm(command, limits);
    case 'rope':
      return rope(command, limits);
    case 'kvStore':
      return kvStore(command, limits);
    case 'attention':
      return attention(command, limits);
    case 'route':
      return route(command, limits, countExperts);
    case 'mapSlots':
      return mapSlots(command, limits);
    case 'experts':
      return experts(command, limits);
    case 'gatedActivation':
      return gatedActivation(command, limits);
    case 'gatherRows':
      return gatherRows(command, limits);
    case 'sample':
      return sample(command, limits);
  }
}
