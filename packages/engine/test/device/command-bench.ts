import type { BufferRef, Command } from '../../src/device/commands.js';
import type { Device } from '../../src/device/device.js';
import type { StepLimits } from '../../src/device/step-inputs.js';
import { StepInputs, layoutStep } from '../../src/device/step-inputs.js';
import { createTypescriptDevice } from '../../src/device/typescript-device.js';

/** A device with memory that tests can fill and read, for running single commands. */
export class CommandBench {
  readonly device: Device;
  readonly inputs: StepInputs;

  constructor(limits: Partial<StepLimits> = {}, device: Device = createTypescriptDevice()) {
    this.device = device;
    const layout = layoutStep({ maxNumTokens: 8, maxNumSeqs: 4, maxLogitRows: 4, maxBlocksPerSeq: 4, maxAdjustments: 16, ...limits });
    this.inputs = new StepInputs(layout, device.allocate(layout.byteLength, 'step inputs').buffer);
  }

  /** Device memory for `length` float32, starting with `values`. */
  floats(values: ArrayLike<number>, length = values.length): BufferRef {
    const ref = this.device.allocate(4 * length, 'floats');
    floatsIn(ref).set(values);
    return ref;
  }

  ints(values: ArrayLike<number>, length = values.length): BufferRef {
    const ref = this.device.allocate(4 * length, 'ints');
    intsIn(ref).set(values);
    return ref;
  }

  setCounts({ tokens = 0, sequences = 0, logitRows = 0 }: { tokens?: number; sequences?: number; logitRows?: number }): void {
    this.inputs.header.set([tokens, sequences, logitRows]);
  }

  async run(...commands: Command[]): Promise<void> {
    await this.device.submit(this.device.compile(commands, this.inputs.layout), this.inputs);
  }
}

export function floatsIn({ buffer, byteOffset, byteLength }: BufferRef): Float32Array {
  return new Float32Array(buffer, byteOffset, byteLength / 4);
}

export function intsIn({ buffer, byteOffset, byteLength }: BufferRef): Int32Array {
  return new Int32Array(buffer, byteOffset, byteLength / 4);
}
