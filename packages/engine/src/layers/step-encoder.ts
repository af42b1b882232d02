import type { Kernel } from '@moe-server/core';
import { MoeError } from '@moe-server/core';
import type { BufferRef, Command, RowCount } from '../device/commands.js';
import type { ActivationBuffers } from './activation-buffers.js';
import type { BoundKernel } from './weights.js';

/** Rows of both counts; see {@link RowCount}. */
export type StepSize = Readonly<Record<RowCount, number>>;

/** Numbers of rows, both ends inclusive. */
export interface RowRange {
  readonly min: number;
  readonly max: number;
}

/**
 * Records the commands of a step. Where a layer has kernels for different numbers of rows, it takes those for the size that it was made
 * for, and remembers for which other sizes the recording holds as well: with one kernel per layer, for all.
 */
export class StepEncoder {
  readonly #buffers: ActivationBuffers;
  readonly #size: StepSize;
  readonly #commands: Command[] = [];
  readonly #ranges: Record<RowCount, RowRange> = { tokens: { min: 0, max: Infinity }, logitRows: { min: 0, max: Infinity } };

  constructor(buffers: ActivationBuffers, size: StepSize) {
    this.#buffers = buffers;
    this.#size = size;
  }

  append(command: Command): void {
    this.#commands.push(command);
  }

  /** See {@link ActivationBuffers.get}. */
  buffer(label: string, rows: RowCount, width: number): BufferRef {
    return this.#buffers.get(label, rows, width);
  }

  /** The kernel for the rows of this recording. */
  choose(kernels: readonly BoundKernel[], rows: RowCount): Kernel {
    // A kernel is not called for no rows, so that any will do.
    const size = Math.max(this.#size[rows], 1);
    const chosen = kernels.find(({ tokens }) => size >= tokens.min && size <= tokens.max);
    if (chosen === undefined) throw new MoeError('MOE_INTERNAL', `No kernel of a layer takes ${String(size)} rows.`, { rows, size });
    if (kernels.length > 1) {
      const { min, max } = this.#ranges[rows];
      this.#ranges[rows] = { min: Math.max(min, chosen.tokens.min), max: Math.min(max, chosen.tokens.max) };
    }
    return chosen.kernel;
  }

  finish(): StepRecording {
    return { commands: this.#commands, ranges: this.#ranges };
  }
}

export interface StepRecording {
  readonly commands: readonly Command[];
  /** Sizes of steps that the commands are right for. */
  readonly ranges: Readonly<Record<RowCount, RowRange>>;
}
