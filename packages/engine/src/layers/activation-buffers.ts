import type { BufferRef, RowCount } from '../device/commands.js';
import type { Device } from '../device/device.js';
import type { StepLimits } from '../device/step-inputs.js';

/**
 * The memory between the operators of a step. Layers run one after the other, so buffers of the same label and width are one: what a
 * layer leaves in them is gone when the next layer of its kind has run.
 */
export class ActivationBuffers {
  readonly #device: Pick<Device, 'allocate'>;
  readonly #limits: StepLimits;
  readonly #buffers = new Map<string, BufferRef>();

  constructor(device: Pick<Device, 'allocate'>, limits: StepLimits) {
    this.#device = device;
    this.#limits = limits;
  }

  /** [rows, width] of 4-byte elements, for the most rows that a step can bring. */
  get(label: string, rows: RowCount, width: number): BufferRef {
    const key = `${label} [${rows}, ${String(width)}]`;
    const known = this.#buffers.get(key);
    if (known !== undefined) return known;
    const maxRows = rows === 'tokens' ? this.#limits.maxNumTokens : this.#limits.maxLogitRows;
    const ref = this.#device.allocate(4 * maxRows * width, key);
    this.#buffers.set(key, ref);
    return ref;
  }

  /** Bytes of all buffers so far. */
  get byteLength(): number {
    let bytes = 0;
    for (const { byteLength } of this.#buffers.values()) bytes += byteLength;
    return bytes;
  }
}
