import type { BufferRef, Command, RowCount } from '../device/commands.js';
import type { Device } from '../device/device.js';
import type { StepLimits } from '../device/step-inputs.js';

/**
 * Records the commands of one step and lends the memory between them. Layers run one after the other, so buffers of the same label
 * and width are one: what a layer leaves in them is gone when the next layer of its kind has run.
 */
export class StepEncoder {
  readonly limits: StepLimits;
  readonly #device: Pick<Device, 'allocate'>;
  readonly #commands: Command[] = [];
  readonly #buffers = new Map<string, BufferRef>();

  constructor(device: Pick<Device, 'allocate'>, limits: StepLimits) {
    this.#device = device;
    this.limits = limits;
  }

  append(command: Command): void {
    this.#commands.push(command);
  }

  /** [rows, width] of 4-byte elements, for the most rows that a step can bring. */
  buffer(label: string, rows: RowCount, width: number): BufferRef {
    const key = `${label} [${rows}, ${String(width)}]`;
    const known = this.#buffers.get(key);
    if (known !== undefined) return known;
    const maxRows = rows === 'tokens' ? this.limits.maxNumTokens : this.limits.maxLogitRows;
    const ref = this.#device.allocate(4 * maxRows * width, key);
    this.#buffers.set(key, ref);
    return ref;
  }

  /** Bytes of all buffers so far. */
  get bufferBytes(): number {
    let bytes = 0;
    for (const { byteLength } of this.#buffers.values()) bytes += byteLength;
    return bytes;
  }

  finish(): readonly Command[] {
    return this.#commands;
  }
}
