import type { DeviceInfo } from '@moe-server/core';
import type { BufferRef, Command } from './commands.js';
import type { StepInputs, StepLayout } from './step-inputs.js';

/**
 * Executes recorded commands. One engine uses one device.
 *
 * ```ts
 * const program = device.compile(commands, layout);   // once
 * await device.submit(program, stepInputs);           // every step; one native call, off the JS thread
 * ```
 */
export interface Device {
  readonly info: DeviceInfo;
  /**
   * Zeroed memory, 64-byte aligned, for as long as the ArrayBuffer lives.
   *
   * @throws {MoeError} MOE_DEVICE_MEMORY when there is not that much.
   */
  readonly allocate: (byteLength: number, label: string) => BufferRef;
  /**
   * Turns a command list into what the device executes. Checks every shape against its buffer.
   *
   * @throws {MoeError} MOE_DEVICE_KERNEL when a kernel's entry cannot run here.
   */
  readonly compile: (commands: readonly Command[], layout: StepLayout) => Program;
  /**
   * Runs the program on one step's inputs; resolves when every output is in memory. One submit at a time.
   *
   * @throws {MoeError} MOE_DEVICE_KERNEL with the command's name when a kernel fails.
   */
  readonly submit: (program: Program, inputs: StepInputs) => Promise<void>;
  /** Different experts that routing chose in a step, added up over layers and all steps so far: the weights of so many were read. */
  readonly numExpertsChosen: number;
  /** Of the last step that ended, also while another one runs. */
  readonly lastStep: StepTimes;
  readonly dispose: () => void;
}

/** From when to when a device computed, in milliseconds on the system's monotonic clock, which process.hrtime() reads too. */
export interface StepTimes {
  readonly beganMs: number;
  readonly endedMs: number;
}

/** A compiled command list; opaque to all but its device. */
export interface Program {
  readonly numCommands: number;
  /** Scratch memory its kernels share, in bytes. */
  readonly workspaceBytes: number;
  readonly dispose: () => void;
}
