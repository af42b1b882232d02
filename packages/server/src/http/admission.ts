import { requestError } from '../openai/errors.js';

export interface AdmissionLimits {
  /** Sequences the engine runs at once. */
  readonly maxNumSeqs: number;
  /** Sequences that may wait beside those. */
  readonly maxNumQueued: number;
}

/**
 * Bounds the work that was accepted and not finished, in sequences (prompts times n). Asked before a prompt is tokenized, so
 * that a refusal costs next to nothing; what was let in is never refused later.
 */
export class Admission {
  private current = 0;
  private waiting: (() => void)[] = [];

  constructor(
    private readonly limits: () => AdmissionLimits,
    private readonly onRefused: () => void = () => undefined,
  ) {}

  /** Resolves when nothing is inside: at once, or when the last has left. */
  async whenEmpty(): Promise<void> {
    if (this.current === 0) return;
    await new Promise<void>((resolve) => this.waiting.push(resolve));
  }

  /** Sequences inside. */
  get numAdmitted(): number {
    return this.current;
  }

  /**
   * Lets `numSequences` in. A request larger than the whole queue is let in when it is alone: it could never be otherwise.
   *
   * @returns what to call once when they have ended.
   * @throws {MoeError} MOE_CAPACITY_QUEUE_FULL.
   */
  enter(numSequences: number): () => void {
    const { maxNumSeqs, maxNumQueued } = this.limits();
    if (this.current > 0 && this.current + numSequences > maxNumSeqs + maxNumQueued) {
      this.onRefused();
      const message = `The queue is full: ${String(this.current)} sequences run or wait, the limit is ${String(maxNumSeqs + maxNumQueued)}.`;
      throw requestError(message, { headers: { 'retry-after': '1' } }, 'MOE_CAPACITY_QUEUE_FULL');
    }
    this.current += numSequences;
    let isInside = true;
    return () => {
      if (!isInside) return;
      isInside = false;
      this.current -= numSequences;
      if (this.current > 0) return;
      for (const resolve of this.waiting) resolve();
      this.waiting = [];
    };
  }
}
