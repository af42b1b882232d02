import type { BufferRef, Command } from './device/commands.js';
import type { Device, Program } from './device/device.js';
import type { StepLayout } from './device/step-inputs.js';
import type { StepRecording, StepSize } from './layers/step-encoder.js';

/** A recording, compiled: as a whole, and on demand in two parts, so that logits can be looked at before sampling changes them. */
export class RecordedStep {
  readonly whole: Program;
  /** [logitRows, vocabSize] f32. */
  readonly logits: BufferRef;
  readonly #recording: StepRecording;
  readonly #compile: (commands: readonly Command[]) => Program;
  #forward: Program | undefined;
  #sample: Program | undefined;

  /** @param recording - ends with its sample command. */
  constructor(device: Device, layout: StepLayout, recording: StepRecording, logits: BufferRef) {
    this.#compile = (commands) => device.compile(commands, layout);
    this.#recording = recording;
    this.logits = logits;
    this.whole = this.#compile(recording.commands);
  }

  /** Whether the kernels in it are those for a step of this size. */
  holdsFor(size: StepSize): boolean {
    const { tokens, logitRows } = this.#recording.ranges;
    // No rows are no call, whatever the kernel.
    return isWithin(size.tokens, tokens) && (size.logitRows === 0 || isWithin(size.logitRows, logitRows));
  }

  /** Everything up to the logits. */
  forward(): Program {
    this.#forward ??= this.#compile(this.#recording.commands.slice(0, -1));
    return this.#forward;
  }

  /** The sample command. */
  sample(): Program {
    this.#sample ??= this.#compile(this.#recording.commands.slice(-1));
    return this.#sample;
  }

  dispose(): void {
    this.whole.dispose();
    this.#forward?.dispose();
    this.#sample?.dispose();
  }
}

function isWithin(value: number, { min, max }: { readonly min: number; readonly max: number }): boolean {
  return value >= min && value <= max;
}
