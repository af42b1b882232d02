import type { CpuDeviceInfo, CpuFeature, ErrorCode } from '@moe-server/core';
import { MoeError, errorCodes, messageOf } from '@moe-server/core';
import { availableParallelism } from 'node:os';
import type { BufferRef, Command, ExpertsCommand, LinearCommand } from './commands.js';
import type { NativeDevice } from './cpu-addon.js';
import { loadCpuAddon } from './cpu-addon.js';
import { availableMemoryBytes, outOfMemory } from './cpu-memory.js';
import type { Device, Program, StepTimes } from './device.js';
import type { StepInputs, StepLayout } from './step-inputs.js';
import { experts, linear } from './typescript/kernels.js';
import type { Operator } from './typescript/operator.js';

export interface CpuDeviceOptions {
  /** Threads that compute; default: as many as the system gives this process. */
  readonly numThreads?: number;
  /** Instruction sets to use, a subset of what the processor has; default: all. Fewer choose a narrower path, for tests. */
  readonly features?: readonly CpuFeature[];
  /**
   * `float32`: attention rounds nothing below that type; `auto`, the default: where the processor multiplies bf16 faster, softmax weights
   * are rounded to it (docs/numerics.md, Attention).
   */
  readonly numerics?: 'auto' | 'float32';
  /** Bound on all allocations together; default: what is available now. */
  readonly memoryBytes?: number;
}

/**
 * A device that runs commands in native code on the processor's vector units, with a pool of threads that plugins share. A step is one
 * native call, off the JavaScript thread.
 *
 * Batch-invariant: a row's bits depend on neither the rows beside it, nor the chunking of its prompt, nor the number of threads. They do
 * depend on the instruction set.
 *
 * Limits: KV blocks of 16 positions; attention needs headDim a multiple of 16 and at most 64 query heads per key/value head. A kernel
 * that is a JavaScript function runs between two native calls, on the JavaScript thread.
 *
 * @throws {MoeError} MOE_PLUGIN_ADDON when the addon cannot be loaded; MOE_USAGE for features that the processor lacks or a number of
 * threads that makes no sense.
 */
export function createCpuDevice(options: CpuDeviceOptions = {}): Device {
  return new CpuDevice(options);
}

/** Why there can be no CPU device in this installation, or undefined when there can. */
export function cpuDeviceProblem(): string | undefined {
  try {
    loadCpuAddon();
    return undefined;
  } catch (thrown) {
    return messageOf(thrown);
  }
}

/** As native code has it. */
const maxThreads = 1024;

class CpuDevice implements Device {
  readonly info: CpuDeviceInfo;
  readonly #addon = loadCpuAddon();
  readonly #native: NativeDevice;
  readonly #memoryBytes: number;
  #allocatedBytes = 0;
  readonly #collected = new FinalizationRegistry<number>((byteLength) => {
    this.#allocatedBytes -= byteLength;
  });

  constructor(options: CpuDeviceOptions) {
    const cpu = this.#addon.cpuInfo();
    const missing = options.features?.filter((feature) => !cpu.features.includes(feature)) ?? [];
    if (missing.length > 0) {
      throw new MoeError('MOE_USAGE', `${cpu.name} does not have ${missing.join(', ')}; it has ${cpu.features.join(', ') || 'none'}.`, {
        missing,
        features: cpu.features,
      });
    }
    const { numThreads = availableParallelism(), features = cpu.features, memoryBytes = availableMemoryBytes() } = options;
    if (!Number.isInteger(numThreads) || numThreads < 1 || numThreads > maxThreads) {
      throw new MoeError('MOE_USAGE', `The number of threads must be from 1 to ${String(maxThreads)}, got ${String(numThreads)}.`, {
        numThreads,
      });
    }
    this.#memoryBytes = memoryBytes;
    const usable = options.numerics === 'float32' ? features.filter((feature) => feature !== 'avx512bf16') : features;
    this.#native = new this.#addon.CpuDevice(numThreads, usable);
    this.info = {
      type: 'cpu',
      name: cpu.name,
      architecture: process.arch === 'x64' || process.arch === 'arm64' ? process.arch : 'other',
      features,
      numThreads,
      memoryBytes,
    };
  }

  readonly allocate = (byteLength: number, label: string): BufferRef => {
    if (this.#allocatedBytes + byteLength > this.#memoryBytes)
      throw outOfMemory(label, byteLength, this.#memoryBytes - this.#allocatedBytes);
    const buffer = this.#addon.allocate(byteLength);
    if (buffer === undefined) throw outOfMemory(label, byteLength, undefined);
    this.#allocatedBytes += byteLength;
    this.#collected.register(buffer, byteLength);
    return { buffer, byteOffset: 0, byteLength };
  };

  readonly compile = (commands: readonly Command[], layout: StepLayout): Program => {
    const stages: Stage[] = [];
    let nativeCommands: Command[] = [];
    // The first stage is native even when it is empty: it checks the counts of the step inputs.
    const finishNative = (): void => {
      if (nativeCommands.length === 0 && stages.length > 0) return;
      stages.push({ type: 'native', ...this.#compileNative(nativeCommands, layout) });
      nativeCommands = [];
    };
    try {
      for (const command of commands) {
        if (!isScripted(command)) {
          nativeCommands.push(command);
          continue;
        }
        finishNative();
        stages.push({
          type: 'javascript',
          run: command.op === 'linear' ? linear(command, layout.limits) : experts(command, layout.limits),
        });
      }
      finishNative();
    } catch (thrown) {
      for (const stage of stages) if (stage.type === 'native') this.#native.release(stage.id);
      throw thrown;
    }
    return new CpuProgram(this.#native, stages, commands.length);
  };

  readonly submit = async (program: Program, inputs: StepInputs): Promise<void> => {
    if (!(program instanceof CpuProgram) || program.native !== this.#native) {
      throw new MoeError('MOE_INTERNAL', 'The program was compiled by another device.');
    }
    for (const stage of program.stages) {
      if (stage.type === 'native') await this.#submitNative(stage.id, inputs);
      else stage.run(inputs);
    }
  };

  get numExpertsChosen(): number {
    return this.#native.expertsChosen();
  }

  /** Of the last native call. */
  get lastStep(): StepTimes {
    return this.#native.lastStep();
  }

  readonly dispose = (): void => {
    this.#native.dispose();
  };

  #compileNative(commands: readonly Command[], layout: StepLayout): { id: number; workspaceBytes: number } {
    try {
      return this.#native.compile(commands, layout.limits);
    } catch (cause) {
      throw new MoeError(codeOf(cause), messageOf(cause), {}, { cause });
    }
  }

  async #submitNative(id: number, inputs: StepInputs): Promise<void> {
    try {
      await this.#native.submit(id, inputs.buffer);
    } catch (cause) {
      const command = cause instanceof Error && 'command' in cause ? String(cause.command) : undefined;
      if (command === undefined) throw new MoeError('MOE_INTERNAL', messageOf(cause), {}, { cause });
      if (command === '') throw new MoeError('MOE_INTERNAL', `The step inputs are wrong: ${messageOf(cause)}.`, {}, { cause });
      throw new MoeError('MOE_DEVICE_KERNEL', `${command} failed: ${messageOf(cause)}`, { command }, { cause });
    }
  }
}

/** What runs without a return to JavaScript, or one JavaScript kernel. */
type Stage =
  | { readonly type: 'native'; readonly id: number; readonly workspaceBytes: number }
  | { readonly type: 'javascript'; readonly run: Operator };

class CpuProgram implements Program {
  readonly workspaceBytes: number;
  #isDisposed = false;

  constructor(
    readonly native: NativeDevice,
    readonly stages: readonly Stage[],
    readonly numCommands: number,
  ) {
    this.workspaceBytes = Math.max(0, ...stages.map((stage) => (stage.type === 'native' ? stage.workspaceBytes : 0)));
  }

  readonly dispose = (): void => {
    if (this.#isDisposed) return;
    this.#isDisposed = true;
    for (const stage of this.stages) if (stage.type === 'native') this.native.release(stage.id);
  };
}

function isScripted(command: Command): command is LinearCommand | ExpertsCommand {
  return (command.op === 'linear' || command.op === 'experts') && command.kernel.entry.type !== 'native';
}

function codeOf(thrown: unknown): ErrorCode {
  const code = thrown instanceof Error && 'code' in thrown ? String(thrown.code) : '';
  return code in errorCodes ? (code as ErrorCode) : 'MOE_INTERNAL';
}
